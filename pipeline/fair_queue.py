"""Fairness between callers: a queue, slots and threads for which they take turns, and the recent callers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RECENT_S, HALF_LIFE_S = 2.0, 2.0


class FairQueue(Generic[Item]):
    """One queue per caller; callers take turns, one item at a time. So many items of one caller delay only that caller.

    The next turn is of the caller that had the fewest in the last seconds: one that asks for little goes before those that always wait.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}  # none is empty
        self._recent: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def append(self, item: Item, caller: str) -> None:
        """Put an item at the end of its caller's queue."""
        self._queues.setdefault(caller, deque()).append(item)

    @property
    def callers(self) -> tuple[str, ...]:
        """Callers with waiting items, in the order of their turns."""
        return tuple(sorted(self._queues, key=self.recent_turns))

    def recent_turns(self, caller: str) -> float:
        """How many turns a caller had lately, to compare with others': a turn counts half as much as one HALF_LIFE_S later.

        It is log2 of the sum of 2 ** (time of the turn / HALF_LIFE_S), so it does not depend on when it is read ("forward decay", Cormode
        et al. 2009). -inf without a turn.
        """
        return self._recent.get(caller, -math.inf)

    def count(self, caller: str) -> int:
        """Number of a caller's waiting items."""
        return len(self._queues.get(caller, ()))

    def first(self, caller: str) -> Item:
        """A caller's next item; there must be one."""
        return self._queues[caller][0]

    def pop(self, caller: str | None = None) -> Item:
        """Remove and return the next item, or a caller's next one."""
        caller = self.callers[0] if caller is None else caller
        now = time.monotonic() / HALF_LIFE_S
        self._recent[caller] = now + math.log2(1 + math.exp2(self.recent_turns(caller) - now))
        queue = self._queues[caller]
        item = queue.popleft()
        if not queue:
            del self._queues[caller]
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


class FairSlots:
    """Slots for asynchronous work; callers take turns for them. For one event loop.

    Args:
        count: of slots.
    Attributes:
        max_per_caller: most slots that one caller is given; one without a name may have all.
        waiting: who waits for a slot.
    """

    def __init__(self, count: int) -> None:
        self._free = self.max_per_caller = count
        self._held: Counter[str] = Counter()
        self.waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def held(self, caller: str) -> AsyncIterator[None]:
        """Hold a slot within the block, as soon as one is free and it is the caller's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn, caller)
        self._hand_out()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():
                with suppress(LookupError, ValueError):  # it was taken from the queue meanwhile
                    self.waiting.remove(turn, caller)
            else:
                self._free += 1
                self._held -= Counter({caller: 1})
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free:
            caller = next((one for one in self.waiting.callers if not one or self._held[one] < self.max_per_caller), None)
            if caller is None:
                return
            turn = self.waiting.pop(caller)
            if not turn.done():
                turn.set_result(None)
                self._free -= 1
                self._held[caller] += 1


class FairThreads:
    """Threads for blocking work; callers take turns for them.

    Args:
        count: of threads.
        name: prefix of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._waiting: FairQueue[tuple[Future[Any], Callable[[], Any]]] = FairQueue()
        self._lock = threading.Lock()

    async def run(self, caller: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call `work(*arguments)` on a thread, when one is free and it is the caller's turn. If cancelled before, it is not called, and
        nothing keeps its arguments.
        """
        future: Future[Result] = Future()
        waiting = future, partial(work, *arguments)
        with self._lock:
            self._waiting.append(waiting, caller)
        self._threads.submit(self._run_next)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            with self._lock, suppress(LookupError, ValueError):  # it is no longer in the queue
                self._waiting.remove(waiting, caller)
            raise

    def _run_next(self) -> None:
        with self._lock:
            if not self._waiting:  # some were cancelled
                return
            future, work = self._waiting.pop()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


class RecentCallers:
    """Callers of the last `RECENT_S` seconds."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}  # in the order of their latest item

    def note(self, caller: str) -> None:
        """A caller sends an item now."""
        self._latest.pop(caller, None)
        self._latest[caller] = time.monotonic()

    def others_than(self, caller: str) -> list[str]:
        """The recent callers without this one."""
        forgotten = time.monotonic() - RECENT_S
        while self._latest and next(iter(self._latest.values())) < forgotten:
            del self._latest[next(iter(self._latest))]
        return [other for other in self._latest if other != caller]

    def any_others(self, callers: Iterable[str]) -> bool:
        """Whether some recent caller is another than one of these."""
        return any(self.others_than(caller) for caller in callers)

    def must_leave_room(self, caller: str, recent_turns: Callable[[str], float]) -> bool:
        """Whether a caller must leave room for others: only if there are any, and one of them had fewer turns.

        Args:
            caller: if it is not one of the recent callers, it must leave room for them.
            recent_turns: `FairQueue.recent_turns`.
        """
        others = self.others_than(caller)
        return bool(others) and (
            caller not in self._latest or any(recent_turns(other) < recent_turns(caller) for other in others)
        )
