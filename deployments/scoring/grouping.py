"""Groups images under load, so that they share the cost of the calls between the stages.

    send(item) ──▶ waiting ──▶ group ──▶ dispatch(items), one call for all of them ──▶ each sender's own outcome
    send(item, alone=True) ──▶ a group of its own, at once

At most `max_in_flight` groups are in flight, and up to twice as many of each kind while other callers wait (`_fill`). Items that arrive
meanwhile wait and form the next groups. So an idle service sends each image at once, and a busy one sends full groups.

Callers take turns. A group has either several items of one caller, or single items of several callers, so nobody waits for more images of
another than its own. A caller with nothing in flight does not wait for the groups of others (`_fill`).

Items that may take long (a URL, or an item whose replica died) are sent alone and do not delay others. A group that takes longer than
`COUNTED_FOR_S`, for example because its replica does not answer, no longer counts against `max_in_flight`. If it does not return, it is
cancelled and its senders get `CallHung`. They need not wait for Ray, which takes 6 s to detect a silent node and 9 s for a silent replica.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.scoring.pace import MEMORY_S, Pace
from deployments.settings import GroupSettings
from pipeline.errors import DeadlineExceeded, Overloaded, StageFailed
from pipeline.fair_queue import FairQueue

COUNTED_FOR_S = 1.0
"""A group that takes longer than this no longer counts against `max_in_flight`, seconds."""
HANG_IF_OVERTAKEN_S, HANG_S = 3.0, 6.0
"""A call counts as hung after HANG_S, and after HANG_IF_OVERTAKEN_S if a call sent later is done, seconds."""
HANG_FACTOR, MEASURED_GROUPS = 3.0, 32
"""But not before HANG_FACTOR times the slowest of the last MEASURED_GROUPS groups: a model may need seconds for its batches."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class CallHung(StageFailed):
    """A call does not return, or ended without a result. A retry may work, because another replica may take it."""


class ReplicaLost(StageFailed):
    """The replica that worked on an image died. A retry may work."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    """One sent item. The result of the future is the item's result, or the error to raise."""

    item: Item
    size_bytes: int
    caller: str
    min_hang_s: float = 0.0
    future: asyncio.Future[Result | Exception] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    group: _Group[Item, Result] | None = None  # None while it waits

    @property
    def was_worked_on(self) -> bool:
        """Whether it has a result, or an error caused by the image itself. Only then its time counts for the pace."""
        return self._has_outcome and not isinstance(self.future.result(), DeadlineExceeded | Overloaded | StageFailed)

    @property
    def was_lost(self) -> bool:
        """Whether its call did not return, or failed with the replica."""
        return self._has_outcome and isinstance(self.future.result(), CallHung | ReplicaLost)

    @property
    def _has_outcome(self) -> bool:
        return self.future.done() and not self.future.cancelled()


@dataclass(slots=True, eq=False)
class _Group(Generic[Item, Result]):
    """Items that are sent in one call; `alone`: a single one, which is not counted against `max_in_flight`."""

    entries: list[_Entry[Item, Result]]
    alone: bool
    began: float
    task: asyncio.Task[None] = field(init=False)

    @property
    def min_hang_s(self) -> float:
        """The call does not count as hung before this time, seconds."""
        return max(entry.min_hang_s for entry in self.entries)

    @property
    def is_of_single_items(self) -> bool:
        """Whether no caller has more than one item in the group."""
        return len({entry.caller for entry in self.entries}) == len(self.entries)

    def give_up(self, reason: str) -> None:
        """Raise CallHung to the senders that have no outcome."""
        for entry in self.entries:
            if not entry.future.done():
                entry.future.set_result(CallHung(reason))


class Grouper(Generic[Item, Result]):
    """Groups single items for a call that takes several. For one event loop.

    Args:
        dispatch: takes items and returns one outcome for each, in order. An exception returned in an item's place is raised to its
            sender; an exception raised by `dispatch` is raised to all senders. Cancelled when all senders of the group are cancelled.
        limits: the section `ingress.groups`: most images and MB in a group (a larger item goes alone), and most groups in flight.
    """

    def __init__(
        self, dispatch: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]], limits: GroupSettings
    ) -> None:
        self._dispatch = dispatch
        self._limits = limits
        self._waiting: FairQueue[_Entry[Item, Result]] = FairQueue()
        self._groups: set[_Group[Item, Result]] = set()
        """All groups that have been sent and not ended."""
        self._in_flight: dict[_Group[Item, Result], asyncio.TimerHandle] = {}
        """Those that count against `max_in_flight`, with the timer that ends this."""
        self._filling = False
        self._pace = Pace()
        self._took_s: deque[float] = deque(maxlen=MEASURED_GROUPS)
        self._latest_done_began = 0.0

    async def send(
        self, item: Item, size_bytes: int = 0, *, caller: str = "", alone: bool = False, min_hang_s: float = 0.0
    ) -> Result:
        """Send one item, in a group with others if there is load. May be cancelled.

        Args:
            item: passed to `dispatch` unchanged.
            size_bytes: counted against `max_mb`.
            caller: owner of the item; waiting items take turns by caller.
            alone: send it at once, in a group of its own.
            min_hang_s: its call does not count as hung before this time, seconds; 0 leaves it to the measured times, inf means never.
        Returns:
            The outcome that `dispatch` returned for the item.
        Raises:
            CallHung: the call does not return and was cancelled.
            Exception: the exception that `dispatch` returned for the item.
        """
        entry: _Entry[Item, Result] = _Entry(item, size_bytes, caller, min_hang_s)
        if alone:
            self._start([entry], alone=True)
        else:
            self._waiting.append(entry, caller)
            self._fill_soon()
        try:
            outcome = await entry.future
        except asyncio.CancelledError:
            self._leave(entry)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def expected_s(self, items: int, caller: str = "") -> float:
        """Seconds until this many more items of this caller would be done, at the current pace; 0 if nothing is ahead of them.

        Items sent alone are not counted: their time is no estimate for the others.
        """
        ahead = self._waiting.ahead_of(caller, items) + sum(len(group.entries) for group in self._groups if not group.alone)
        return (ahead + items) * self._pace.seconds_per_item if ahead else 0.0

    def _fill_soon(self) -> None:
        """Fill groups in the next iteration of the event loop: by then all images of a request are waiting and make full groups."""
        if not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        """Start groups while fewer than `max_in_flight` are in flight.

        A caller with nothing in flight also starts one beside them, until there are twice as many groups of its kind: groups of several
        items of a caller, and groups of single items. So single images do not wait for the floods of several callers.
        """
        self._filling = False
        limit = self._limits.max_in_flight
        while self._waiting and len(self._in_flight) < limit:
            self._start(self._next_group(self._waiting.callers[0]))
        in_flight = {entry.caller for group in self._in_flight for entry in group.entries}
        for caller in self._waiting.callers:
            single = self._waiting.count(caller) == 1
            same_kind = sum(group.is_of_single_items == single for group in self._in_flight)
            if self._waiting.count(caller) and caller not in in_flight and same_kind < 2 * limit:
                self._start(self._next_group(caller))

    def _next_group(self, caller: str) -> list[_Entry[Item, Result]]:
        """Waiting items of this caller; if it has only one, those of others that have only one, too."""
        waiting = self._waiting
        of_one_caller = waiting.count(caller) > 1
        entries = [waiting.pop(caller)]
        room = self._limits.max_mb * 1e6 - entries[0].size_bytes
        while len(entries) < self._limits.max_images:
            following = next(
                (one for one in waiting.callers if (one == caller if of_one_caller else waiting.count(one) == 1)), None
            )
            if following is None or waiting.first(following).size_bytes > room:
                break
            entries.append(waiting.pop(following))
            room -= entries[-1].size_bytes
        return entries

    def _start(self, entries: list[_Entry[Item, Result]], *, alone: bool = False) -> None:
        """Send a group, in a new contextvars context: in a request's context, Ray would cancel the call when that request ends."""
        loop, group = asyncio.get_running_loop(), _Group(entries, alone, time.monotonic())
        # Groups that hang for longer than MEMORY_S are ignored here: else idle time would count as work.
        if not alone and not any(not other.alone and group.began - other.began < MEMORY_S for other in self._groups):
            self._pace.begin()
        for entry in entries:
            entry.group = group
        self._groups.add(group)
        group.task = loop.create_task(self._run(group), context=contextvars.Context())
        group.task.add_done_callback(lambda _: self._ended(group))
        if not alone:
            self._in_flight[group] = loop.call_later(COUNTED_FOR_S, self._make_room, group)
        if group.min_hang_s < math.inf:
            self._watch(group)

    async def _run(self, group: _Group[Item, Result]) -> None:
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._dispatch([entry.item for entry in group.entries])
        except Exception as error:
            outcomes = [error] * len(group.entries)
        for entry, outcome in zip(group.entries, outcomes, strict=True):
            if not entry.future.done():
                entry.future.set_result(outcome)

    def _ended(self, group: _Group[Item, Result]) -> None:
        """A group is done or was cancelled, possibly before it began."""
        self._groups.remove(group)
        group.give_up("The call ended without a result.")  # it was cancelled, but not by us: Ray does so when it ends a replica
        if not group.alone and any(entry.was_lost for entry in group.entries):
            self._pace.begin()  # the wait for a lost replica does not count for the pace
        elif not group.alone:
            self._pace.done(sum(entry.was_worked_on for entry in group.entries))
        if not group.min_hang_s and any(entry.was_worked_on for entry in group.entries):
            self._took_s.append(time.monotonic() - group.began)
            self._latest_done_began = max(self._latest_done_began, group.began)
            for other in list(self._groups):
                self._give_up_hanging(other)
        self._make_room(group)
        group.entries = []  # they refer to the group: images would stay in memory until Python looks for such cycles

    def _watch(self, group: _Group[Item, Result]) -> None:
        """Cancel a group that hangs; check again later otherwise."""
        if group in self._groups and not self._give_up_hanging(group):
            left_s = group.began + self._hangs_after_s(group, HANG_S) - time.monotonic()
            asyncio.get_running_loop().call_later(min(max(left_s, 0.001), HANG_S), self._watch, group)

    def _give_up_hanging(self, group: _Group[Item, Result]) -> bool:
        overtaken = group.began < self._latest_done_began
        limit_s = self._hangs_after_s(group, HANG_IF_OVERTAKEN_S if overtaken else HANG_S)
        if time.monotonic() - group.began < limit_s:
            return False
        group.give_up(f"The call did not return within {limit_s:.1f} s.")
        group.task.cancel()
        return True

    def _hangs_after_s(self, group: _Group[Item, Result], least_s: float) -> float:
        """Infinite until a group is done: the network may be compiled for the first batch."""
        return max(group.min_hang_s, least_s, HANG_FACTOR * max(self._took_s, default=math.inf))

    def _make_room(self, group: _Group[Item, Result]) -> None:
        """A group ended, or took longer than COUNTED_FOR_S: the next one may start."""
        timer = self._in_flight.pop(group, None)
        if timer:
            timer.cancel()
        self._fill_soon()

    def _leave(self, entry: _Entry[Item, Result]) -> None:
        """The sender was cancelled: remove the item if it waits, and cancel its group if no other sender waits for it."""
        if entry.group is None:
            self._waiting.remove(entry, entry.caller)
        elif all(other.future.cancelled() for other in entry.group.entries):
            entry.group.task.cancel()
