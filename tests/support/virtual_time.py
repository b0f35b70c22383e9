"""An event loop whose clock jumps to the next timer: minutes of waiting take milliseconds, and always go the same way."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait, but moves `now` on."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for each other"
            self.now += timeout
        return ready


def run(work: Callable[[], Coroutine[Any, Any, Result]], monkeypatch: pytest.MonkeyPatch) -> Result:
    """Run a coroutine on such a loop; `time.time` and `time.monotonic` follow its clock."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: selector.now)
        for clock in ("time", "monotonic"):
            patch.setattr(time, clock, lambda: selector.now)
        try:
            return loop.run_until_complete(work())
        finally:
            loop.close()
