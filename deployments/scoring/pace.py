"""Measures throughput: seconds per item over the last seconds of work."""

from __future__ import annotations

import math
import time

MEMORY_S = 10.0
"""Time constant of the average, seconds. RTMDet-Ins-x on a CPU does two images/s: a shorter time would cover too few of them."""
MIN_ITEMS = 8


class Pace:
    """Exponentially weighted average of the time per item; idle time does not count."""

    def __init__(self) -> None:
        self._items = self._busy_s = self._counted_until = 0.0
        self._measured = 0

    def begin(self) -> None:
        """Work begins after an idle time, which does not count."""
        self._counted_until = time.monotonic()

    def done(self, items: int, use: float = 1.0) -> None:
        """Items are done; `use` is the share of the capacity that was in use since the last call."""
        now = time.monotonic()
        passed = min(now - self._counted_until, MEMORY_S)
        kept = math.exp(-passed / MEMORY_S)
        self._items, self._busy_s, self._counted_until = self._items * kept + items, self._busy_s * kept + passed * use, now
        self._measured += items

    @property
    def seconds_per_item(self) -> float:
        """Seconds per item; 0 until `MIN_ITEMS` items were measured."""
        return self._busy_s / self._items if self._measured >= MIN_ITEMS else 0.0
