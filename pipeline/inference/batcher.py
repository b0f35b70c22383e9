"""Greedy dynamic batching: when the engine can take a batch, all waiting items form one.

    submit() ──▶ queue ──▶ batch ──▶ run_batch, on a thread of its own ──▶ each caller's own result
                   │                      │ raises: both halves are retried, until only the bad item fails
                   ▼                      ▼ out of memory: the same, and batches stay smaller for a while
           deadline passed or      the next batch gathers meanwhile; it starts when the engine reports capacity,
           cancelled: dropped      at the latest when this one is done

An idle engine waits `max_wait_s` for more items; a busy one does not wait, because items queue while it is busy. The queue is unbounded:
the Ingress bounds what it admits.

Callers take turns:
- if callers have names, batches have at most `fair_batch` items, so that nobody waits for a long batch of another, also not the first item
  of a caller that comes while another keeps the engine busy;
- while there are several callers, each has at most `max_per_caller` items running, except the one that asks for the least, so that its
  next item finds room.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from pipeline.errors import ConfigurationError, DeadlineExceeded, EngineLost, EngineOutOfMemory, StageFailed
from pipeline.fair_queue import FairQueue, RecentCallers
from pipeline.inference.batch_queue import BatchLimit, BatchObserver, BatchResult, DropReason, Entry

Item = TypeVar("Item")
Result = TypeVar("Result")
RunBatch = Callable[[list[Item]], Sequence[Result | Exception]]
"""Runs a batch, see GreedyBatcher."""

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Batches in flight: one running, one being prepared."""


class GreedyBatcher(Generic[Item, Result]):
    """Groups single items into batches for an engine, or another blocking function.

    Args:
        run_batch: blocking; takes 1..max_batch items, returns one result for each in order. An exception returned in an item's place fails
            only that item. An exception that it raises fails the batch, which is then retried in halves, but not after EngineLost. Runs
            on one of two threads; see `notify_capacity` for when both are used.
        max_batch: most items in a batch.
        fair_batch: most items in a batch if one of their callers has a name; None for `max_batch`. Choose the smallest batch that costs
            about as much an item as a full one.
        max_per_caller: most running items of a caller while there are others that had fewer; None for no limit.
        run_leaving_room: replaces `run_batch` while there are several callers.
        max_wait_s: longest time that an idle engine waits for more items after the first one, seconds.
        observer: receives batches, splits and drops; None for no observer.
        oom_recover_s: seconds after running out of memory until the batch limit doubles again.
    Raises:
        ConfigurationError: max_batch is below 1 or a time is negative.

    For one event loop.
    """

    def __init__(
        self,
        run_batch: RunBatch[Item, Result],
        *,
        max_batch: int,
        max_wait_s: float,
        fair_batch: int | None = None,
        max_per_caller: int | None = None,
        run_leaving_room: RunBatch[Item, Result] | None = None,
        observer: BatchObserver | None = None,
        oom_recover_s: float = 30.0,
    ) -> None:
        if max_batch < 1 or max_wait_s < 0 or oom_recover_s <= 0:
            raise ConfigurationError(
                f"batching: max_batch must be at least 1 and the times not negative; "
                f"got max_batch {max_batch}, max_wait_s {max_wait_s}, oom_recover_s {oom_recover_s}"
            )
        self._run_batch, self._run_leaving_room = run_batch, run_leaving_room or run_batch
        self._max_per_caller = max_per_caller or 0
        self._limit, self._fair_batch = BatchLimit(max_batch, oom_recover_s), fair_batch or max_batch
        self._max_wait_s = max_wait_s
        self._observer = observer or BatchObserver()
        self._queue: FairQueue[Entry[Item, Result]] = FairQueue()
        self._callers = RecentCallers()
        self._threads = ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="engine")
        self._starter: asyncio.Task[None] | None = None
        self._in_flight: dict[asyncio.Task[None], list[Entry[Item, Result]]] = {}
        self._running_since: dict[int, float] = {}  # by thread
        self._min_items: int | None = 1  # that a batch must have to start; None: the engine takes none now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    @property
    def queue_length(self) -> int:
        """Number of waiting items, not counting those in running batches."""
        return len(self._queue)

    @property
    def running_s(self) -> float:
        """Seconds since the oldest running batch began; 0 if none runs."""
        now = time.perf_counter()
        return now - min(self._running_since.copy().values(), default=now)

    async def submit(
        self, item: Item, *, deadline: float | None = None, caller: str = "", background: bool = False
    ) -> BatchResult[Result]:
        """Run one item in a batch with other waiting items, and return its result.

        Cancelling this call removes the item from the queue; if the engine already runs it, its result is discarded.

        Args:
            item: passed to `run_batch` unchanged.
            deadline: time after which the result is not needed, seconds as `time.time()`; None for none.
            caller: name of the item's owner; empty if all items have the same owner. Waiting items take turns by caller.
            background: the item is to delay no others: its caller does not count as another one for them.
        Raises:
            DeadlineExceeded: the deadline passed, before or while the engine ran.
            Exception: what `run_batch` raised or returned for this item.
        """
        entry: Entry[Item, Result] = Entry(item, deadline, caller, asyncio.get_running_loop().create_future())
        if not background:
            self._callers.note(caller)
        self._enqueue(entry)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.time()):
                outcome = await entry.future
        except TimeoutError:
            self._leave(entry, "deadline")
            raise DeadlineExceeded("the deadline passed before the image was scored") from None
        except asyncio.CancelledError:
            self._leave(entry, "cancelled")
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def notify_capacity(self, min_items: int = 1) -> None:
        """Report that the engine can begin a second batch while one runs; called by an engine as its `CapacityListener`.

        Thread-safe. The waiting items become a batch on a second thread. Without such calls, batches run one at a time. An unnecessary call
        is harmless: the batch just waits for the engine on its thread.

        Args:
            min_items: number of items that make a second batch worthwhile; fewer wait until the running batch is done.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._note_capacity, min_items)

    def _enqueue(self, entry: Entry[Item, Result]) -> None:
        self._queue.append(entry, entry.caller)
        self._changed.set()
        if self._starter is None or self._starter.done():
            self._loop = asyncio.get_running_loop()
            self._starter = self._loop.create_task(self._start_batches())

    def _max_items(self) -> int:
        """Most items of the next batch."""
        return min(self._limit.now(), self._fair_batch) if any(self._queue.callers) else self._limit.now()

    def _startable(self) -> Counter[str]:
        """How many waiting items of each caller may start now."""
        startable = Counter({caller: self._queue.count(caller) for caller in self._queue.callers})
        running = Counter(entry.caller for batch in self._in_flight.values() for entry in batch)
        for caller in startable if self._max_per_caller else ():
            if self._callers.must_leave_room(caller, self._queue.recent_turns):
                startable[caller] = max(0, min(startable[caller], self._max_per_caller - running[caller]))
        return startable

    def _leave(self, entry: Entry[Item, Result], reason: DropReason) -> None:
        with suppress(LookupError, ValueError):  # it is no longer in the queue
            self._queue.remove(entry, entry.caller)
        if not entry.started:
            self._report(self._observer.item_dropped, reason)

    async def _start_batches(self) -> None:
        await self._wait_for_more()
        while self._queue or self._in_flight:
            self._changed.clear()
            if self._may_start():
                self._start_batch()
            else:
                await self._changed.wait()

    def _may_start(self) -> bool:
        if self._min_items is None or len(self._in_flight) == MAX_IN_FLIGHT:
            return False
        return self._startable().total() >= min(self._min_items, self._max_items())

    def _start_batch(self) -> None:
        startable, max_items, entries = self._startable(), self._max_items(), list[Entry[Item, Result]]()
        while len(entries) < max_items and startable.total():
            caller = next(caller for caller in self._queue.callers if startable[caller])
            entries.append(self._queue.pop(caller))
            startable[caller] -= 1
        self._min_items = None
        run = self._run_leaving_room if self._callers.any_others(entry.caller for entry in entries) else self._run_batch
        task = asyncio.create_task(self._run(entries, run))
        self._in_flight[task] = entries
        task.add_done_callback(self._end_batch)

    def _end_batch(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]
        self._changed.set()
        if not self._in_flight:
            self._note_capacity(1)

    def _note_capacity(self, min_items: int) -> None:
        self._min_items = min_items if self._min_items is None else min(self._min_items, min_items)
        self._changed.set()

    async def _wait_for_more(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait_s):
                while len(self._queue) < self._max_items():
                    self._changed.clear()
                    await self._changed.wait()

    async def _run(self, entries: list[Entry[Item, Result]], run: RunBatch[Item, Result]) -> None:
        """Run the entries that are still wanted; if the batch fails, run its halves, down to single items."""
        batch = [entry for entry in entries if entry.wanted]
        if not batch:
            return
        started_at = time.perf_counter()
        for entry in batch:
            entry.started = True
        loop = asyncio.get_running_loop()
        outcomes, run_s = await loop.run_in_executor(self._threads, self._timed_run, run, [entry.item for entry in batch])
        if isinstance(outcomes, Exception) and not isinstance(outcomes, EngineLost) and len(batch) > 1:
            half = len(batch) // 2
            self._note_failure(outcomes, len(batch), half)
            await self._run(batch[:half], run)
            await self._run(batch[half:], run)
            return
        waits_s = [started_at - entry.submitted_at for entry in batch]
        for index, (entry, wait_s) in enumerate(zip(batch, waits_s, strict=True)):
            outcome = outcomes if isinstance(outcomes, Exception) else outcomes[index]
            entry.resolve(outcome if isinstance(outcome, Exception) else BatchResult(outcome, wait_s, run_s))
        self._report(self._observer.batch_ran, waits_s, run_s)

    def _timed_run(
        self, run: RunBatch[Item, Result], items: list[Item]
    ) -> tuple[Sequence[Result | Exception] | Exception, float]:
        """Runs on a thread of the engine: returns the results, or the exception that was raised, and the time, seconds."""
        started_at = self._running_since[threading.get_ident()] = time.perf_counter()
        outcomes: Sequence[Result | Exception] | Exception
        try:
            outcomes = run(items)
            if len(outcomes) != len(items):
                outcomes = StageFailed(f"the engine returned {len(outcomes)} results for {len(items)} items")
        except Exception as error:
            outcomes = error
        except BaseException as error:  # SystemExit in the engine must not end the event loop
            outcomes = StageFailed(f"the engine raised {type(error).__name__}")
        finally:
            del self._running_since[threading.get_ident()]
        return outcomes, time.perf_counter() - started_at

    def _note_failure(self, error: Exception, size: int, half: int) -> None:
        out_of_memory = isinstance(error, EngineOutOfMemory | MemoryError)
        if out_of_memory:
            self._limit.lower(half)
        logger.warning("a batch of %d failed, retrying its halves: %s: %s", size, type(error).__name__, error)
        self._report(self._observer.batch_split, out_of_memory)

    def _report(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            logger.exception("the batch observer failed")
