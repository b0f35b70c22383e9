"""Round-robin queue over callers, so that many items of one caller delay only that caller."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """One queue per caller; callers take turns, one item at a time."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}  # in the order of turns; none is empty

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def append(self, item: Item, caller: str) -> None:
        """Put an item at the end of its caller's queue."""
        self._queues.setdefault(caller, deque()).append(item)

    def first(self) -> Item:
        """The next item; there must be one."""
        return next(iter(self._queues.values()))[0]

    def pop(self) -> Item:
        """Remove and return the next item; then it is the next caller's turn."""
        caller = next(iter(self._queues))
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
