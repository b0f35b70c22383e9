"""What the batcher keeps of an item that waits, what it gives back, whom it tells, and how large a batch may be now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DropReason = Literal["deadline", "cancelled", "closed"]


class BatchObserver(Protocol):
    """Told what happens, on the event loop: be quick. What an observer raises is logged and goes no further."""

    def batch_ran(self, waits_s: Sequence[float], run_s: float) -> None:
        """The model ran len(waits_s) items in `run_s` seconds; each had waited so many seconds since `submit`."""

    def batch_split(self, size: int, out_of_memory: bool) -> None:
        """A batch of `size` items failed as a whole; its halves are tried next."""

    def item_dropped(self, reason: DropReason) -> None:
        """An item left the queue before the model saw it."""


class SilentObserver:
    """The observer nobody asked for."""

    def batch_ran(self, waits_s: Sequence[float], run_s: float) -> None: ...

    def batch_split(self, size: int, out_of_memory: bool) -> None: ...

    def item_dropped(self, reason: DropReason) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """One item's result and what it took.

    Args:
        result: what `run_batch` returned in this item's place.
        wait_s: seconds from `submit` until the model started on it (failed tries included).
        run_s: seconds the model ran the batch that held it.
        batch_size: items in that batch.
    """

    result: Result
    wait_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Entry(Generic[Item, Result]):
    """One waiting item. Its future never holds an exception, only a `BatchResult` or the error to raise."""

    item: Item
    deadline: float | None
    future: asyncio.Future[BatchResult[Result] | BaseException]
    submitted_at: float = field(default_factory=time.perf_counter)
    started: bool = False

    @property
    def wanted(self) -> bool:
        """Whether its caller still waits and its deadline lies ahead (past it, the timer in `submit` tells the caller)."""
        return not self.future.done() and (self.deadline is None or time.time() < self.deadline)

    def resolve(self, outcome: BatchResult[Result] | BaseException) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class BatchLimit:
    """The largest batch allowed now: lowered when memory runs out, doubled every `recover_s` seconds up to `highest`."""

    def __init__(self, highest: int, recover_s: float) -> None:
        self._highest = self._value = highest
        self._recover_s = recover_s
        self._raise_at = 0.0

    def now(self) -> int:
        while self._value < self._highest and time.monotonic() >= self._raise_at:
            self._value = min(2 * self._value, self._highest)
            self._raise_at += self._recover_s
        return self._value

    def lower(self, value: int) -> None:
        self._value = max(1, min(value, self._value))
        self._raise_at = time.monotonic() + self._recover_s
