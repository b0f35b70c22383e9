"""Slots that all processes of this machine share: a large image is decoded by few of them at a time, however many replicas there are.

Each slot is a file that is locked (flock) while it is held. The kernel unlocks it when its holder ends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

CORES_A_SLOT = 4
_POLL_S = 0.01


class NodeSlots:
    """Slots of this machine and user, one for every `CORES_A_SLOT` cores, at least one.

    Args:
        name: of what they are for.
        folder: for the files; None takes the temporary folder.
        count: of slots; None counts the cores that this process may use.
    """

    def __init__(self, name: str, folder: Path | None = None, count: int | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir())
        count = count or max(1, len(os.sched_getaffinity(0)) // CORES_A_SLOT)
        paths = [folder / f"rtmdet-ins-serve-{os.getuid()}-{name}-{slot}.lock" for slot in range(count)]
        self._locks = [FileLock(path, mode=0o600) for path in paths]

    @contextmanager
    def held(self, patience_s: float) -> Iterator[None]:
        """Hold a slot within the block.

        Args:
            patience_s: longest wait, seconds. Then the block runs without a slot, because a holder that was stopped keeps its own for ever.
        """
        lock = self._first_free(time.monotonic() + patience_s)
        try:
            yield
        finally:
            if lock:
                lock.release()

    def _first_free(self, deadline: float) -> FileLock | None:
        while True:
            for lock in self._locks:
                with suppress(Timeout, OSError):
                    lock.acquire(blocking=False)
                    return lock
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)
