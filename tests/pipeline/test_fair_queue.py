"""Turns of callers: in a queue, and for threads."""

import asyncio
import threading
import time

import pytest

from pipeline.fair_queue import HALF_LIFE_S, FairQueue, FairThreads


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


def test_turns_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits after a long pause is not served before all others until it had as many turns as they in all that time."""
    queue = filled("AAAAAA")
    assert drained(queue) == "AAAAAA"
    later = time.monotonic() + 20 * HALF_LIFE_S
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert queue.recent_turns("A") < 0.001
    for caller in "AABB":
        queue.append(caller, caller)
    assert drained(queue) == "BABA"


def test_a_removed_item_takes_no_turn() -> None:
    queue = filled("AB")
    queue.remove("A", "A")
    assert (queue.count("A"), queue.callers, drained(queue)) == (0, ("B",), "B")


class TestFairThreads:
    """One thread, held by the first piece of work until `gate` is set."""

    def setup_method(self) -> None:
        self.threads, self.gate, self.done = FairThreads(1, "fair"), threading.Event(), list[str]()

    def teardown_method(self) -> None:
        self.gate.set()
        self.threads.close()

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

    async def test_an_error_is_raised_to_its_caller_and_the_thread_goes_on(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await self.threads.run("a", lambda: 1 // 0)
        assert await self.threads.run("a", sum, [1, 2]) == 3
