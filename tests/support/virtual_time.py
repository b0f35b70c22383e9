"""An event loop whose clock jumps to the next timer: minutes of waiting take milliseconds, and always go the same way, however busy the
machine is.
"""

import asyncio
import selectors
import time
from unittest import mock


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait, but moves `now` on."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for each other"
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code that runs on one thread and waits only for timers. While it runs, `time.time` and `time.monotonic` follow its clock."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_forever(self) -> None:
        with mock.patch.multiple(time, time=self.time, monotonic=self.time):
            super().run_forever()
