"""Callers take turns: one item of each, again and again, so that the flood of one caller delays that caller's own items."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """A queue for each caller; the first item of the caller whose turn it is comes next."""

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
        """Take the next item. Its caller's next turn comes after those of the others."""
        caller = next(iter(self._queues))
        queue = self._queues.pop(caller)
        item = queue.popleft()
        if queue:
            self._queues[caller] = queue
        return item

    def remove(self, item: Item, caller: str) -> None:
        """Take an item out, wherever it is in its caller's queue."""
        queue = self._queues[caller]
        queue.remove(item)
        if not queue:
            del self._queues[caller]

    def ahead_of(self, caller: str, items: int) -> int:
        """How many items come before the last of so many that this caller would add now."""
        own = len(self._queues.get(caller, ()))
        return own + sum(min(len(queue), own + items) for other, queue in self._queues.items() if other != caller)
