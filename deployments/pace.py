"""How fast work gets done: seconds an item, measured over the last seconds in which there was work."""

from __future__ import annotations

import math
import time

MEMORY_S = 10.0
"""RTMDet-Ins-x on a CPU makes two images a second: a shorter memory would never hold enough of them to judge by."""
MIN_ITEMS = 8.0


class Pace:
    """Items a second while there is work (exponentially weighted)."""

    def __init__(self) -> None:
        self._items = self._busy_s = self._counted_until = 0.0

    def begin(self) -> None:
        """Work begins after idleness: the time until now does not count."""
        self._counted_until = time.monotonic()

    def done(self, items: int) -> None:
        """Items are done."""
        now = time.monotonic()
        passed = min(now - self._counted_until, MEMORY_S)
        kept = math.exp(-passed / MEMORY_S)
        self._items, self._busy_s, self._counted_until = self._items * kept + items, self._busy_s * kept + passed, now

    @property
    def seconds_an_item(self) -> float:
        """0 before enough is known."""
        return self._busy_s / self._items if self._items >= MIN_ITEMS else 0.0
