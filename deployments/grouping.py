"""Sends images on in groups, so that they share the cost of the calls between the stages when there is load.

    send(item) ──▶ waiting ──▶ group ──▶ dispatch(items), one call for all of them ──▶ each sender's own outcome
    send(item, alone=True) ──▶ a group of its own, at once

A few groups are in flight at a time; items that come meanwhile wait and form the next groups. An idle service therefore sends each
image at once, and a busy one sends full groups. Items that may take long (a URL, one whose replica died) are sent alone and delay
nobody. A group whose call hangs, on a replica that fell silent for instance, stops counting after `PATIENCE_S`, and is given up after some
seconds (`CallHangs`): Ray's own verdict comes after 7 s for a node and up to 30 s for a replica, which it asks to end before it kills it.
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

from deployments.pace import MEMORY_S, Pace
from deployments.settings import GroupSettings
from deployments.turns import Turns
from pipeline.errors import DeadlineExceeded, Overloaded, StageFailed

PATIENCE_S = 1.0
"""A group that takes longer no longer counts against `max_in_flight`."""
HANGS_S, SILENT_S = 3.0, 6.0
"""A call hangs that takes longer, while one that was sent later is done, or while none is."""
HANGS_TIMES, MEASURED_GROUPS = 3.0, 32
"""And longer than so many times the slowest of the last groups: a model may need seconds for its batches."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class CallHangs(StageFailed):
    """A call does not return. Sending its items again may work: another replica may take them."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    """One sent item; not counted where it is sent alone. Its future never holds an exception, only the result or the error to raise."""

    item: Item
    size_bytes: int
    caller: str
    counted: bool = True
    patience_s: float = 0.0
    future: asyncio.Future[Result | Exception] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    group: asyncio.Task[None] | None = None
    began: float = 0.0

    @property
    def was_worked_on(self) -> bool:
        """Whether it has an outcome of its own: a result, or an error that the image caused. Then its time counts for the pace."""
        done = self.future.done() and not self.future.cancelled()
        return done and not isinstance(self.future.result(), DeadlineExceeded | Overloaded | StageFailed)


class Grouper(Generic[Item, Result]):
    """Groups single items for a call that takes several.

    Args:
        dispatch: takes items, returns one outcome for each in order; an exception in an item's place is raised to its sender.
            What it raises itself is a bug, and is raised to all. Cancelled when every sender of the group has gone.
        limits: the section `ingress.groups`: most images and MB in a group (a larger item goes alone), and groups in flight.

    Belongs to one event loop.
    """

    def __init__(
        self, dispatch: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]], limits: GroupSettings
    ) -> None:
        self._dispatch = dispatch
        self._limits = limits
        self._waiting: Turns[_Entry[Item, Result]] = Turns()
        self._in_flight: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self._filling = False
        self._pace = Pace()
        self._groups: dict[asyncio.Task[None], list[_Entry[Item, Result]]] = {}
        self._took_s: deque[float] = deque(maxlen=MEASURED_GROUPS)
        self._latest_done = 0.0

    async def send(
        self, item: Item, size_bytes: int = 0, *, caller: str = "", alone: bool = False, patience_s: float = 0.0
    ) -> Result:
        """Send one item, with others where that saves calls. Cancelling gives it up.

        Args:
            item: handed to `dispatch` as it is.
            size_bytes: counted against `max_mb`.
            caller: whose it is; those that wait take turns by caller.
            alone: in a group of its own and at once.
            patience_s: it is alone and may take so long: before that its call does not hang.
        Raises:
            CallHangs: its call does not return; the item was given up.
            Exception: what `dispatch` returned in the item's place.
        """
        entry: _Entry[Item, Result] = _Entry(item, size_bytes, caller, not alone, patience_s)
        if alone:
            self._start([entry])
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
        """Seconds until so many more items of this caller would be done, at the pace of the last seconds; 0 where nothing is ahead of them.

        Items sent alone are left out on both sides: how long they take says nothing about the others.
        """
        ahead = self._waiting.ahead_of(caller, items) + sum(len(group) for group in self._groups.values() if group[0].counted)
        return (ahead + items) * self._pace.seconds_an_item if ahead else 0.0

    def _fill_soon(self) -> None:
        """Fill groups after this turn of the event loop: all images of a request wait by then, and make full groups."""
        if not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        self._filling = False
        while self._waiting and len(self._in_flight) < self._limits.max_in_flight:
            self._start(self._next_group())

    def _next_group(self) -> list[_Entry[Item, Result]]:
        group = [self._waiting.pop()]
        room = self._limits.max_mb * 1e6 - group[0].size_bytes
        while self._waiting and len(group) < self._limits.max_images and self._waiting.first().size_bytes <= room:
            group.append(self._waiting.pop())
            room -= group[-1].size_bytes
        return group

    def _start(self, entries: list[_Entry[Item, Result]]) -> None:
        """Send a group, in a context of its own: in that of a request, Ray would cancel the call when this one request ends."""
        loop, counted = asyncio.get_running_loop(), entries[0].counted
        now = time.monotonic()
        # A group that hangs for longer than the pace remembers does not make idleness look like work.
        if counted and not any(group[0].counted and now - group[0].began < MEMORY_S for group in self._groups.values()):
            self._pace.begin()
        task = loop.create_task(self._run(entries), context=contextvars.Context())
        self._groups[task] = entries
        if counted:
            self._in_flight[task] = loop.call_later(PATIENCE_S, self._make_room, task)
        task.add_done_callback(self._ended)
        for entry in entries:
            entry.group, entry.began = task, now
        if entries[0].patience_s < math.inf:
            self._watch(task)

    async def _run(self, entries: list[_Entry[Item, Result]]) -> None:
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._dispatch([entry.item for entry in entries])
        except Exception as error:
            outcomes = [error] * len(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if not entry.future.done():
                entry.future.set_result(outcome)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A group is done or was given up, maybe before it began."""
        entries = self._groups.pop(task)
        if entries[0].counted:
            self._pace.done(sum(entry.was_worked_on for entry in entries))
        if not entries[0].patience_s and any(entry.was_worked_on for entry in entries):
            self._took_s.append(time.monotonic() - entries[0].began)
            self._latest_done = max(self._latest_done, entries[0].began)
            for other, overtaken in list(self._groups.items()):
                self._give_up_hanging(other, overtaken)
        self._make_room(task)

    def _watch(self, task: asyncio.Task[None]) -> None:
        """Give a group up where it hangs, or look again when it would."""
        entries = self._groups.get(task)
        if entries and not self._give_up_hanging(task, entries):
            left_s = entries[0].began + self._hangs_after_s(entries[0], SILENT_S) - time.monotonic()
            asyncio.get_running_loop().call_later(min(max(left_s, 0.001), SILENT_S), self._watch, task)

    def _give_up_hanging(self, task: asyncio.Task[None], entries: list[_Entry[Item, Result]]) -> bool:
        overtaken = entries[0].began < self._latest_done
        limit_s = self._hangs_after_s(entries[0], HANGS_S if overtaken else SILENT_S)
        if time.monotonic() - entries[0].began < limit_s:
            return False
        for entry in entries:
            if not entry.future.done():
                entry.future.set_result(CallHangs(f"The call did not return within {limit_s:.1f} s."))
        task.cancel()
        return True

    def _hangs_after_s(self, entry: _Entry[Item, Result], least_s: float) -> float:
        """Never, before any group is done: a first batch may be compiled for."""
        return max(entry.patience_s, least_s, HANGS_TIMES * max(self._took_s, default=math.inf))

    def _make_room(self, task: asyncio.Task[None]) -> None:
        """A group ended or is overdue: the next one may go."""
        overdue = self._in_flight.pop(task, None)
        if overdue:
            overdue.cancel()
        self._fill_soon()

    def _leave(self, entry: _Entry[Item, Result]) -> None:
        """Its sender has gone: do not dispatch it, or give up a group that nobody waits for."""
        if entry.group is None:
            self._waiting.remove(entry, entry.caller)
        elif all(other.future.cancelled() for other in self._groups.get(entry.group, ())):
            entry.group.cancel()
