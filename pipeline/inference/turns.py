"""Fairness between callers: a round-robin queue, and who was here in the last seconds."""

from __future__ import annotations

import time
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

RECENT_S = 2.0


class Turns(Generic[Item]):
    """One queue per caller; callers take turns, one item at a time. So many items of one caller delay only that caller."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}  # in the order of turns; none is empty

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def append(self, item: Item, caller: str) -> None:
        """Put an item at the end of its caller's queue."""
        self._queues.setdefault(caller, deque()).append(item)

    @property
    def callers(self) -> tuple[str, ...]:
        """Callers with waiting items, in the order of their turns."""
        return tuple(self._queues)

    def first(self, caller: str | None = None) -> Item:
        """The next item, or a caller's next one; there must be one."""
        return self._queues[self.callers[0] if caller is None else caller][0]

    def pop(self, caller: str | None = None) -> Item:
        """Remove and return the next item, or a caller's next one. Its caller's next turn is after those of all others."""
        caller = self.callers[0] if caller is None else caller
        queue = self._queues.pop(caller)
        item = queue.popleft()
        if queue:
            self._queues[caller] = queue
        return item

    def remove(self, item: Item, caller: str) -> None:
        """Remove an item from its caller's queue."""
        queue = self._queues[caller]
        queue.remove(item)
        if not queue:
            del self._queues[caller]

    def ahead_of(self, caller: str, items: int) -> int:
        """If this caller added `items` items now: how many items, of all callers, would be ahead of the last one."""
        own = len(self._queues.get(caller, ()))
        return own + sum(min(len(queue), own + items) for other, queue in self._queues.items() if other != caller)


class RecentCallers:
    """Callers of the last `RECENT_S` seconds."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}  # in the order of their latest item

    def note(self, caller: str) -> None:
        """A caller sends an item now."""
        self._latest.pop(caller, None)
        self._latest[caller] = time.monotonic()

    @property
    def are_several(self) -> bool:
        """Whether there is more than one."""
        forgotten = time.monotonic() - RECENT_S
        while self._latest and next(iter(self._latest.values())) < forgotten:
            del self._latest[next(iter(self._latest))]
        return len(self._latest) > 1
