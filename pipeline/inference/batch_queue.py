"""Parts of the batcher: waiting items, results, the observer interface, and the current limit of the batch size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DropReason = Literal["deadline", "cancelled"]


class BatchObserver:
    """Callbacks of a batcher, which here do nothing. They run on the event loop, so they must be quick; exceptions are only logged."""

    def batch_ran(self, waits_s: Sequence[float], run_s: float) -> None:
        """The engine ran a batch in `run_s` seconds; `waits_s` has the seconds that each of its items waited since `submit`."""

    def batch_split(self, out_of_memory: bool) -> None:
        """A batch failed and is retried in halves."""

    def item_dropped(self, reason: DropReason) -> None:
        """An item was removed from the queue before the engine ran it."""


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """The result of one item, and its times.

    Args:
        result: what `run_batch` returned for the item.
        wait_s: time from `submit` until the engine started on it, including failed tries, seconds.
        run_s: time that the engine took for its batch, seconds.
    """

    result: Result
    wait_s: float
    run_s: float


@dataclass(slots=True, eq=False)
class Entry(Generic[Item, Result]):
    """One submitted item. The future's result is a `BatchResult`, or the error to raise; it never has an exception."""

    item: Item
    deadline: float | None
    caller: str
    future: asyncio.Future[BatchResult[Result] | BaseException]
    submitted_at: float = field(default_factory=time.perf_counter)
    started: bool = False

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits and the deadline has not passed (when it passes, `submit` raises in the caller)."""
        return not self.future.done() and (self.deadline is None or time.time() < self.deadline)

    def resolve(self, outcome: BatchResult[Result] | BaseException) -> None:
        """Set the future's result, unless the caller has given up."""
        if not self.future.done():
            self.future.set_result(outcome)


class BatchLimit:
    """The current limit of the batch size: lowered when memory runs out, doubled every `recover_s` seconds up to `highest`."""

    def __init__(self, highest: int, recover_s: float) -> None:
        self._highest = self._value = highest
        self._recover_s = recover_s
        self._raise_at = 0.0

    def now(self) -> int:
        """The limit at this moment, in items."""
        while self._value < self._highest and time.monotonic() >= self._raise_at:
            self._value = min(2 * self._value, self._highest)
            self._raise_at += self._recover_s
        return self._value

    def lower(self, value: int) -> None:
        """Limit batches to `value` items, at least 1, from now on."""
        self._value = max(1, min(value, self._value))
        self._raise_at = time.monotonic() + self._recover_s
