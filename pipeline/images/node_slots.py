"""Slots shared by all processes of this machine: few decode a large image at a time, whatever the replicas.

Each slot is a file that is locked (flock) while it is held. The kernel unlocks it when its holder ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

CORES_PER_SLOT = 4
_POLL_S = 0.01


def no_pause(_took_s: float) -> float:
    """The slot is free at once."""
    return 0.0


class NodeSlots:
    """Slots of this machine and user, one for every `CORES_PER_SLOT` cores, at least one.

    Args:
        name: of what they are for.
        folder: for the files; None takes the temporary folder.
        count: of slots; None counts the cores that this process may use.
    """

    def __init__(self, name: str, folder: Path | None = None, count: int | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir())
        count = count or max(1, len(os.sched_getaffinity(0)) // CORES_PER_SLOT)
        self._paths = [folder / f"rtmdet-ins-serve-{os.getuid()}-{name}-{slot}.lock" for slot in range(count)]

    @contextmanager
    def held(self, patience_s: float, pause_s: Callable[[float], float] = no_pause) -> Iterator[None]:
        """Hold a slot within the block; none if the files cannot be written.

        Args:
            patience_s: longest wait, seconds. Then the block runs without a slot, because a holder that was stopped keeps its own for ever.
            pause_s: takes the seconds that the block took; returns for how many the slot stays held after it, by a thread.
        """
        lock = self._first_free(time.monotonic() + patience_s)
        began = time.monotonic()
        try:
            yield
        finally:
            if lock:
                _release_later(lock, pause_s(time.monotonic() - began))

    def _first_free(self, deadline: float) -> FileLock | None:
        while True:
            for path in self._paths:
                lock = FileLock(path, mode=0o600, thread_local=False)  # a new one, which does not share a lock of this process
                try:
                    lock.acquire(blocking=False)
                    return lock
                except Timeout:
                    continue
                except OSError:  # the file cannot be written
                    return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)


def _release_later(lock: FileLock, seconds: float) -> None:
    if seconds <= 0:
        lock.release()
        return
    timer = threading.Timer(seconds, lock.release)
    timer.daemon = True
    timer.start()
