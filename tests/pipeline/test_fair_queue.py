"""Turns of callers: in a queue, and for threads."""

import asyncio
import gc
import math
import random
import threading
import time
import weakref
from collections import Counter

import pytest

from pipeline.fair_queue import HALF_LIFE_S, FairQueue, FairSlots, FairThreads


def filled(items: str) -> FairQueue[str]:
    """A queue of such items, each of the caller with its letter."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.append(item, item)
    return queue


def drained(queue: FairQueue[str]) -> str:
    return "".join(queue.pop() for _ in range(len(queue)))


def test_callers_take_turns_in_the_order_in_which_they_came() -> None:
    assert drained(filled("AAAABBC")) == "ABCABAA"


def test_who_asks_for_little_is_ahead_of_those_who_always_wait() -> None:
    """Twice in a row, until it had as many turns as the others."""
    queue = filled("AAAABBBB")
    assert [queue.pop() for _ in range(6)] == ["A", "B"] * 3
    for _ in range(4):
        queue.append("C", "C")
    assert drained(queue) == "CCCABC"


@pytest.mark.parametrize("seed", range(20))
def test_a_pause_while_turns_are_compared_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may be stopped for a while between reading one caller's turns and another's."""
    chance, now = random.Random(seed), [1000.0]

    def clock() -> float:
        now[0] += 1 if chance.random() < 0.05 else 0.001
        return now[0]

    monkeypatch.setattr("time.monotonic", clock)
    assert drained(filled("AAAABBBBCCCC")) == "ABC" * 4


def test_turns_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits after a long pause is not served before all others until it had as many turns as they in all that time."""
    queue = filled("AAAAAA")
    assert drained(queue) == "AAAAAA"
    later = time.monotonic() + 20 * HALF_LIFE_S
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert queue.recent_turns("A") < later / HALF_LIFE_S + math.log2(0.001)
    for caller in "AABB":
        queue.append(caller, caller)
    assert drained(queue) == "BABA"


def test_a_removed_item_takes_no_turn() -> None:
    queue = filled("AB")
    queue.remove("A", "A")
    assert (queue.count("A"), queue.callers, drained(queue)) == (0, ("B",), "B")


class TestFairSlots:
    async def hold(self, slots: FairSlots, caller: str, log: list[str], steps: int = 1) -> None:
        async with slots.held(caller):
            log.append(caller)
            for _ in range(steps):
                await asyncio.sleep(0)

    async def test_callers_take_turns(self) -> None:
        slots, log = FairSlots(1), list[str]()
        await asyncio.gather(*(self.hold(slots, caller, log) for caller in "AAABB"))
        assert "".join(log) == "ABABA"

    async def test_a_caller_leaves_slots_for_others(self) -> None:
        """Except one without a name: there is no other."""
        slots, log = FairSlots(4), list[str]()
        slots.max_per_caller = 2
        work = [asyncio.create_task(self.hold(slots, caller, log, 100)) for caller in ["A"] * 6 + ["B"] + [""] * 2]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert Counter(log) == {"A": 2, "B": 1, "": 1}
        await asyncio.gather(*work)

    @pytest.mark.parametrize("seed", range(20))
    async def test_cancelled_at_any_moment(self, seed: int) -> None:
        """No slot is lost or given twice, and nobody waits for ever."""
        chance, slots, holders = random.Random(seed), FairSlots(3), Counter[str]()
        slots.max_per_caller = 2

        async def hold(caller: str) -> None:
            async with slots.held(caller):
                holders[caller] += 1
                try:
                    assert holders.total() <= 3
                    assert not caller or holders[caller] <= 2
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    holders[caller] -= 1

        work = []
        for _ in range(300):
            work.append(asyncio.create_task(hold(chance.choice(["", "A", "B", "C"]))))
            if chance.random() < 0.5:
                chance.choice(work).cancel()
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        log: list[str] = []
        await asyncio.gather(*(self.hold(slots, "", log) for _ in range(3)))
        assert (len(log), len(slots.waiting), slots._free) == (3, 0, 3)


class Pixels:
    """What work takes; `weakref` cannot name a plain list."""


class TestFairThreads:
    """One thread, held by the first piece of work until `gate` is set."""

    def setup_method(self) -> None:
        self.threads, self.gate, self.done = FairThreads(1, "fair"), threading.Event(), list[str]()

    def teardown_method(self) -> None:
        self.gate.set()
        self.threads._threads.shutdown()

    def send(self, caller: str, count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.threads.run(caller, self.done.append, caller)) for _ in range(count)]

    async def test_callers_take_turns(self) -> None:
        """The work of one who comes last does not wait for all that another sent before."""
        first = asyncio.create_task(self.threads.run("first", self.gate.wait))
        await asyncio.sleep(0)
        tasks = self.send("loud", 4)
        await asyncio.sleep(0)
        tasks += self.send("polite", 1)
        await asyncio.sleep(0)
        self.gate.set()
        await asyncio.gather(first, *tasks)
        assert self.done == ["loud", "polite", "loud", "loud", "loud"]

    async def test_cancelled_work_is_not_done(self) -> None:
        first = asyncio.create_task(self.threads.run("first", self.gate.wait))
        await asyncio.sleep(0)
        cancelled, kept = self.send("loud", 2)
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        self.gate.set()
        await asyncio.gather(first, kept)
        assert self.done == ["loud"]

    async def test_nothing_is_kept_of_cancelled_work(self) -> None:
        """An image whose client hung up takes no memory until a thread comes free, which may last many seconds."""
        first = asyncio.create_task(self.threads.run("first", self.gate.wait))
        await asyncio.sleep(0)
        pixels = Pixels()
        kept = weakref.ref(pixels)
        task = asyncio.create_task(self.threads.run("loud", self.done.append, pixels))
        del pixels
        await asyncio.sleep(0)
        task.cancel()
        del task
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()  # the error refers to itself by its traceback
        assert kept() is None
        self.gate.set()
        await first

    async def test_an_error_is_raised_to_its_caller_and_the_thread_goes_on(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await self.threads.run("a", lambda: 1 // 0)
        assert await self.threads.run("a", sum, [1, 2]) == 3
