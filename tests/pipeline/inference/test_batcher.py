"""The greedy batcher with fake models that wait for gates instead of sleeping, where possible."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError, DeadlineExceeded, EngineLost, EngineOutOfMemory, StageFailed
from pipeline.inference.batch_queue import BatchLimit, BatchObserver, BatchResult, DropReason
from pipeline.inference.batcher import GreedyBatcher
from tests.support.event_loop import settle

SLACK_S = 0.5
"""How late a loaded two-core machine may wake a thread or a timer."""


@dataclass
class GatedModel:
    """Doubles every item, and finishes a batch only while its gate is open. Keeps the batches it was given."""

    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        if not self.gate.wait(5):
            raise TimeoutError("the test never opened the gate")
        return [2 * item for item in items]


@dataclass
class Notes(BatchObserver):
    """An observer that writes everything down."""

    sizes: list[int] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    splits: list[bool] = field(default_factory=list)
    drops: list[DropReason] = field(default_factory=list)

    def batch_ran(self, waits_s: Sequence[float], run_s: float) -> None:
        assert run_s >= 0
        self.sizes.append(len(waits_s))
        self.waits_s.extend(waits_s)

    def batch_split(self, out_of_memory: bool) -> None:
        self.splits.append(out_of_memory)

    def item_dropped(self, reason: DropReason) -> None:
        self.drops.append(reason)


@asynccontextmanager
async def running(model: Callable[[list[Any]], Any], **options: Any) -> AsyncIterator[GreedyBatcher[Any, Any]]:
    batcher = GreedyBatcher(model, **{"max_batch": 4, "max_wait_s": 0.0, **options})
    try:
        yield batcher
    finally:
        if isinstance(model, GatedModel):
            model.gate.set()
        await idle(batcher)
        batcher._threads.shutdown()


async def idle(batcher: GreedyBatcher[Any, Any]) -> None:
    """Wait until it has nothing left to run."""
    if batcher._starter is not None:
        await asyncio.wait([batcher._starter], timeout=5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def submit_all(batcher: GreedyBatcher[Any, Any], items: Sequence[Any], **options: Any) -> list[asyncio.Task[BatchResult[Any]]]:
    return [asyncio.create_task(batcher.submit(item, **options)) for item in items]


async def outcomes(tasks: Sequence[asyncio.Task[BatchResult[Any]]]) -> list[Any]:
    """Each task's result, or the exception it ended with."""
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [one.result if isinstance(one, BatchResult) else one for one in ended]


class TestForming:
    """Which items run together, and when."""

    async def test_what_gathers_while_the_model_is_busy_runs_together(self) -> None:
        """The first item runs alone; the six that come meanwhile run as a full batch and the rest."""
        model = GatedModel()
        async with running(model) as batcher:
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            rest = submit_all(batcher, range(1, 7))
            await until(lambda: batcher.queue_length == 6)
            model.gate.set()
            assert await outcomes(first + rest) == [0, 2, 4, 6, 8, 10, 12]
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]

    async def test_a_busy_model_that_becomes_free_does_not_wait_for_more_items(self) -> None:
        """With a max_wait of one hour, a partial batch still starts as soon as the one before it ends."""
        model = GatedModel()
        async with running(model, max_wait_s=3600) as batcher:
            first = submit_all(batcher, range(4))
            await until(lambda: model.batches)
            late = submit_all(batcher, [9])
            await until(lambda: batcher.queue_length == 1)
            model.gate.set()
            async with asyncio.timeout(5):
                assert await outcomes(first + late) == [0, 2, 4, 6, 18]

    async def test_a_full_batch_starts_at_once(self) -> None:
        """An idle model with an hour of max_wait starts when the batch is full."""
        model = GatedModel()
        model.gate.set()
        async with running(model, max_wait_s=3600) as batcher, asyncio.timeout(5):
            assert await outcomes(submit_all(batcher, range(4))) == [0, 2, 4, 6]
        assert model.batches == [[0, 1, 2, 3]]

    async def test_a_batch_that_becomes_full_starts_at_once(self) -> None:
        """Its items come one after the other."""
        async with running(lambda items: items, max_wait_s=3600) as batcher, asyncio.timeout(5):
            tasks = []
            for item in range(4):
                tasks += submit_all(batcher, [item])
                await settle()
            assert await outcomes(tasks) == [0, 1, 2, 3]

    async def test_callers_take_turns(self) -> None:
        """Six items of one caller wait, then one of another comes: it is in the next batch, which has at most fair_batch items."""
        model = GatedModel()
        async with running(model, fair_batch=2) as batcher:
            tasks = submit_all(batcher, [0], caller="loud")
            await until(lambda: model.batches)
            tasks += submit_all(batcher, range(1, 7), caller="loud")
            await until(lambda: batcher.queue_length == 6)
            tasks += submit_all(batcher, [10], caller="quiet")
            await until(lambda: batcher.queue_length == 7)
            model.gate.set()
            assert await outcomes(tasks) == [0, 2, 4, 6, 8, 10, 12, 20]
        assert model.batches == [[0], [10, 1], [2, 3], [4, 5], [6]]

    async def test_a_caller_leaves_room_for_others(self) -> None:
        """All but the one that had the fewest turns have at most `max_per_caller` items running: its next item starts beside them."""
        model, leaving_room = GatedModel(), GatedModel()
        async with running(model, fair_batch=2, max_per_caller=1, run_leaving_room=leaving_room) as batcher:
            tasks = submit_all(batcher, [0], caller="loud")
            await until(lambda: model.batches)
            tasks += submit_all(batcher, range(1, 4), caller="loud")
            tasks += submit_all(batcher, [10], caller="quiet")
            await until(lambda: batcher.queue_length == 4)
            model.gate.set()
            await until(lambda: leaving_room.batches)
            batcher.notify_capacity()
            await asyncio.sleep(0.01)
            assert leaving_room.batches == [[10, 1]]
            tasks += submit_all(batcher, [11], caller="quiet")
            await until(lambda: len(leaving_room.batches) > 1)
            assert leaving_room.batches == [[10, 1], [11]]
            leaving_room.gate.set()
            assert await outcomes(tasks) == [0, 2, 4, 6, 20, 22]
        assert model.batches == [[0]]

    async def test_items_in_the_background_delay_no_others(self) -> None:
        """They leave room for others, which have no limit beside them, and are not run apart."""
        model, leaving_room = GatedModel(), GatedModel()
        async with running(model, fair_batch=2, max_per_caller=1, run_leaving_room=leaving_room) as batcher:
            tasks = submit_all(batcher, [0], caller="a")
            await until(lambda: model.batches)
            tasks += submit_all(batcher, range(1, 4), caller="a/large", background=True)
            model.gate.set()
            await until(lambda: leaving_room.batches)
            tasks += submit_all(batcher, range(10, 12), caller="a")
            batcher.notify_capacity()
            await until(lambda: len(model.batches) > 1)
            leaving_room.gate.set()
            await outcomes(tasks)
        assert model.batches[1] == [10, 11]
        assert leaving_room.batches == [[1], [2], [3]]

    @pytest.mark.parametrize(("caller", "batches"), [("", [[0], [1, 2, 3, 4]]), ("loud", [[0], [1, 2], [3, 4]])])
    async def test_full_batches_if_nobody_else_can_come(self, caller: str, batches: list[list[int]]) -> None:
        """Where callers have names, another one may come and should not wait for a full batch; not for its first item either."""
        model = GatedModel()
        async with running(model, fair_batch=2) as batcher:
            tasks = submit_all(batcher, [0], caller=caller)
            await until(lambda: model.batches)
            tasks += submit_all(batcher, range(1, 5), caller=caller)
            await until(lambda: batcher.queue_length == 4)
            model.gate.set()
            await outcomes(tasks)
        assert model.batches == batches

    async def test_a_fair_batch_does_not_wait_for_more(self) -> None:
        """An idle model with `fair_batch` items has no reason to wait."""
        model = GatedModel()
        model.gate.set()
        async with running(model, fair_batch=2, max_wait_s=5.0) as batcher, asyncio.timeout(2):
            await outcomes(submit_all(batcher, [1, 2], caller="loud"))
        assert model.batches == [[1, 2]]

    async def test_an_idle_item_waits_at_most_max_wait(self) -> None:
        """A lone item runs after max_wait, not sooner and not much later."""
        model = GatedModel()
        model.gate.set()
        async with running(model, max_wait_s=0.05) as batcher:
            served = await batcher.submit(1)
        assert 0.045 <= served.wait_s < 0.05 + SLACK_S
        assert model.batches == [[1]]

    async def test_company_within_max_wait_shares_the_batch(self) -> None:
        """Two items a few milliseconds apart run together on an idle model."""
        model = GatedModel()
        model.gate.set()
        async with running(model, max_wait_s=0.2) as batcher:
            tasks = submit_all(batcher, [1])
            await asyncio.sleep(0.005)
            tasks += submit_all(batcher, [2])
            await outcomes(tasks)
        assert model.batches == [[1, 2]]

    async def test_no_wait_runs_a_lone_item_at_once(self) -> None:
        """With max_wait 0 an idle model starts without delay, and items of one moment still share a batch."""
        model = GatedModel()
        model.gate.set()
        async with running(model) as batcher:
            await outcomes(submit_all(batcher, [1, 2, 3]))
            assert (await batcher.submit(4)).wait_s < SLACK_S
        assert model.batches == [[1, 2, 3], [4]]

    async def test_batches_fill_under_load(self) -> None:
        """Twice as many closed-loop callers as the batch holds keep nearly every batch full."""
        notes = Notes()

        def nap(items: list[int]) -> list[int]:
            time.sleep(0.01)
            return items

        async def caller(batcher: GreedyBatcher[int, int]) -> None:
            for number in range(10):
                await batcher.submit(number)

        async with running(nap, max_batch=8, observer=notes) as batcher:
            await asyncio.gather(*(caller(batcher) for _ in range(16)))
        assert sum(notes.sizes) == 160
        assert sum(notes.sizes) / len(notes.sizes) >= 7

    async def test_results_keep_their_callers_and_their_order(self) -> None:
        """Every caller gets its own result, and items reach the model in the order they came."""
        model = GatedModel()
        model.gate.set()
        async with running(model, max_batch=7) as batcher:
            assert await outcomes(submit_all(batcher, range(100))) == [2 * n for n in range(100)]
        assert [item for batch in model.batches for item in batch] == list(range(100))

    async def test_the_loop_stays_responsive_while_the_model_blocks(self) -> None:
        """A 0.6 s batch that holds its thread does not hold the event loop."""

        def nap(items: list[int]) -> list[int]:
            time.sleep(0.6)
            return items

        async with running(nap) as batcher:
            task = submit_all(batcher, [1])[0]
            longest_gap_s, before = 0.0, time.perf_counter()
            while not task.done():
                await asyncio.sleep(0.005)
                longest_gap_s, before = max(longest_gap_s, time.perf_counter() - before), time.perf_counter()
            assert longest_gap_s < 0.5

    async def test_batches_run_on_threads_of_their_own(self) -> None:
        """Two at most, and never on the event loop's."""
        model = GatedModel()
        model.gate.set()
        async with running(model) as batcher:
            for number in range(5):
                await batcher.submit(number)
        assert 1 <= len(model.threads) <= 2
        assert threading.current_thread().name not in model.threads


class TestRoom:
    """A model that says it could begin another batch."""

    async def test_the_next_batch_starts_beside_the_running_one(self) -> None:
        """Waiting items run on a second thread at once; a third batch waits in any case."""
        model = GatedModel()
        async with running(model) as batcher:
            tasks = submit_all(batcher, [0])
            await until(lambda: model.batches)
            tasks += submit_all(batcher, [1, 2])
            await until(lambda: batcher.queue_length == 2)
            batcher.notify_capacity()
            await until(lambda: len(model.batches) == 2)
            tasks += submit_all(batcher, [3])
            batcher.notify_capacity()
            await asyncio.sleep(0.02)
            assert model.batches == [[0], [1, 2]]
            model.gate.set()
            assert await outcomes(tasks) == [0, 2, 4, 6]
        assert model.batches[2:] == [[3]]
        assert len(model.threads) == 2

    async def test_room_said_with_nobody_waiting_is_kept_for_who_comes(self) -> None:
        """The late item starts at once beside the running batch."""
        model = GatedModel()
        async with running(model, max_wait_s=0.05) as batcher:
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            batcher.notify_capacity()
            await asyncio.sleep(0)
            late = submit_all(batcher, [1])
            await until(lambda: model.batches == [[0], [1]])
            model.gate.set()
            assert await outcomes(first + late) == [0, 2]

    async def test_room_for_many_waits_until_they_are_there(self) -> None:
        """With room for three or more, two wait; the third starts them all."""
        model = GatedModel()
        async with running(model) as batcher:
            tasks = submit_all(batcher, [0])
            await until(lambda: model.batches)
            batcher.notify_capacity(3)
            tasks += submit_all(batcher, [1, 2])
            await asyncio.sleep(0.02)
            assert model.batches == [[0]]
            tasks += submit_all(batcher, [3])
            await until(lambda: model.batches == [[0], [1, 2, 3]])
            model.gate.set()
            assert await outcomes(tasks) == [0, 2, 4, 6]

    async def test_an_idle_model_takes_any_number(self) -> None:
        """Room for three or more was for beside the batch that has ended since."""
        model = GatedModel()
        async with running(model) as batcher, asyncio.timeout(5):
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            batcher.notify_capacity(3)
            late = submit_all(batcher, [1])
            await settle()
            assert model.batches == [[0]]
            model.gate.set()
            assert await outcomes(first + late) == [0, 2]

    async def test_without_the_word_batches_run_one_at_a_time(self) -> None:
        """An item that came meanwhile waits for the end of the running batch."""
        model = GatedModel()
        async with running(model) as batcher:
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            late = submit_all(batcher, [1])
            await asyncio.sleep(0.02)
            assert model.batches == [[0]]
            model.gate.set()
            assert await outcomes(first + late) == [0, 2]

    async def test_capacity_notified_before_the_first_item_is_ignored(self) -> None:
        """No worker is running yet."""
        async with running(lambda items: items) as batcher:
            batcher.notify_capacity()
            assert (await batcher.submit(1)).result == 1


class TestLeaving:
    """Callers that go, and deadlines that pass."""

    async def test_a_cancelled_caller_costs_nothing(self) -> None:
        """Its item leaves the queue at once and the model never sees it."""
        model, notes = GatedModel(), Notes()
        async with running(model, observer=notes) as batcher:
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            gone, stays = submit_all(batcher, [1, 2])
            await until(lambda: batcher.queue_length == 2)
            gone.cancel()
            await until(gone.done)
            assert batcher.queue_length == 1
            model.gate.set()
            assert await outcomes([*first, stays]) == [0, 4]
        assert gone.cancelled()
        assert model.batches == [[0], [2]]
        assert notes.drops == ["cancelled"]

    async def test_cancelling_a_running_item_spares_its_neighbours(self) -> None:
        """The model finishes the batch; only the result of the cancelled caller is discarded."""
        model, notes = GatedModel(), Notes()
        async with running(model, observer=notes) as batcher:
            gone, stays = submit_all(batcher, [1, 2])
            await until(lambda: model.batches)
            gone.cancel()
            await until(gone.done)
            model.gate.set()
            assert await outcomes([stays]) == [4]
        assert notes.drops == []

    async def test_a_caller_that_leaves_an_idle_model_leaves_no_batch(self) -> None:
        """The only item is cancelled while it waits for more items: the model is not called; the next item is served."""
        model = GatedModel()
        model.gate.set()
        async with running(model, max_wait_s=0.05) as batcher:
            gone = submit_all(batcher, [1])[0]
            await until(lambda: batcher.queue_length == 1)
            gone.cancel()
            await asyncio.sleep(0.08)
            assert model.batches == []
            assert (await batcher.submit(2)).result == 4

    async def test_a_deadline_in_the_queue_is_reported_on_time(self) -> None:
        """The caller gets the error when the deadline passes, not when the model is free; the item never runs."""
        model, notes = GatedModel(), Notes()
        async with running(model, observer=notes) as batcher:
            first = submit_all(batcher, [0])
            await until(lambda: model.batches)
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, deadline=time.time() + 0.03)
            assert not first[0].done()
            assert batcher.queue_length == 0
        assert model.batches == [[0]]
        assert notes.drops == ["deadline"]

    async def test_a_deadline_already_past_never_runs(self) -> None:
        """Refused even by an idle model."""
        model, notes = GatedModel(), Notes()
        async with running(model, observer=notes) as batcher:
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, deadline=time.time() - 1)
        assert model.batches == []
        assert notes.drops == ["deadline"]

    async def test_a_deadline_during_the_run_frees_the_caller(self) -> None:
        """The caller does not wait for the end of a batch whose result comes too late."""
        model, notes = GatedModel(), Notes()
        async with running(model, observer=notes) as batcher:
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, deadline=time.time() + 0.05)
        assert model.batches == [[1]]
        assert notes.drops == []

    async def test_an_overdue_timer_still_drops_before_the_model(self) -> None:
        """When the loop was blocked past the deadline, the item is dropped although its timer has not fired yet."""
        model = GatedModel()
        model.gate.set()
        async with running(model) as batcher:
            task = submit_all(batcher, [1], deadline=time.time() + 0.01)[0]
            await asyncio.sleep(0)
            time.sleep(0.03)
            assert [type(one) for one in await outcomes([task])] == [DeadlineExceeded]
        assert model.batches == []

    async def test_a_timeout_of_the_model_is_not_mistaken_for_a_deadline(self) -> None:
        """TimeoutError raised by the model reaches the caller as TimeoutError."""

        def slow(_: list[int]) -> list[int]:
            raise TimeoutError("the GPU does not answer")

        async with running(slow) as batcher:
            with pytest.raises(TimeoutError, match="the GPU"):
                await batcher.submit(1, deadline=time.time() + 60)


class TestFailing:
    """Bad items, bad batches, and too little memory."""

    async def test_an_exception_in_an_items_place_fails_that_item_alone(self) -> None:
        """The neighbours get their results, and nothing runs twice."""
        calls = []

        def model(items: list[int]) -> list[int | Exception]:
            calls.append(len(items))
            return [ValueError("odd") if item % 2 else item for item in items]

        async with running(model) as batcher:
            results = await outcomes(submit_all(batcher, range(4)))
        assert [type(one) for one in results] == [int, ValueError, int, ValueError]
        assert calls == [4]

    @pytest.mark.parametrize("position", range(16))
    async def test_a_batch_that_raises_is_halved_until_the_bad_item_stands_alone(self, position: int) -> None:
        """One of 16 poisons every batch it is in: it alone fails, in at most 1 + 2 log2(16) calls."""
        calls, notes = [], Notes()

        def model(items: list[int]) -> list[int]:
            calls.append(len(items))
            if position in items:
                raise ValueError(f"poison {position}")
            return items

        async with running(model, max_batch=16, observer=notes) as batcher:
            results = await outcomes(submit_all(batcher, range(16)))
        assert [one for one in results if isinstance(one, int)] == [n for n in range(16) if n != position]
        assert str(results[position]) == f"poison {position}"
        assert sorted(calls, reverse=True) == [16, 8, 8, 4, 4, 2, 2, 1, 1]
        assert notes.splits == [False] * 4

    async def test_a_fatal_error_reaches_every_caller_unchanged(self) -> None:
        """The model fails for every item: each caller gets the model's own exception, and the next item is tried again."""
        broken = True

        def model(items: list[int]) -> list[int]:
            if broken:
                raise RuntimeError("the GPU fell off the bus")
            return items

        async with running(model) as batcher:
            results = await outcomes(submit_all(batcher, range(4)))
            assert [str(one) for one in results] == ["the GPU fell off the bus"] * 4
            broken = False
            assert (await batcher.submit(7)).result == 7

    async def test_how_long_a_batch_has_been_running(self) -> None:
        """Of the oldest one, while it runs; 0 before and after, also after a failure."""
        go_on = threading.Event()

        def model(_items: list[int]) -> list[int]:
            go_on.wait(10)
            raise EngineLost("gone")

        async with running(model) as batcher:
            assert batcher.running_s == 0
            waiting = asyncio.gather(*submit_all(batcher, range(2)), return_exceptions=True)
            await asyncio.sleep(0.1)
            assert 0.01 < batcher.running_s < 10
            go_on.set()
            await waiting
            assert batcher.running_s == 0

    async def test_a_lost_model_is_not_tried_with_less(self) -> None:
        """After EngineLost the batch is not split: one call, and all items fail."""
        calls, notes = [], Notes()

        def model(items: list[int]) -> list[int]:
            calls.append(len(items))
            raise EngineLost("the GPU is gone")

        async with running(model, max_batch=8, observer=notes) as batcher:
            assert [type(one) for one in await outcomes(submit_all(batcher, range(8)))] == [EngineLost] * 8
        assert (calls, notes.splits) == ([8], [])

    async def test_out_of_memory_splits_and_keeps_batches_small_for_a_while(self) -> None:
        """A batch of 8 does not fit: all items are served in fours, later batches hold 4, and after a while 8 again."""
        calls, notes, fits = [], Notes(), 4

        def model(items: list[int]) -> list[int]:
            calls.append(len(items))
            if len(items) > fits:
                raise EngineOutOfMemory(f"{len(items)} items")
            return items

        async with running(model, max_batch=8, observer=notes, oom_recover_s=0.2) as batcher:
            assert await outcomes(submit_all(batcher, range(8))) == list(range(8))
            assert await outcomes(submit_all(batcher, range(8))) == list(range(8))
            assert calls == [8, 4, 4, 4, 4]
            assert notes.splits == [True]
            fits = 8
            await asyncio.sleep(0.25)
            assert await outcomes(submit_all(batcher, range(8))) == list(range(8))
        assert calls[5:] == [8]

    async def test_one_item_too_large_for_the_memory_fails_alone(self) -> None:
        """An item that never fits gets the error itself; the rest of its batch is served."""

        def model(items: list[int]) -> list[int]:
            if 5 in items:
                raise MemoryError("too large")
            return items

        async with running(model, max_batch=8) as batcher:
            results = await outcomes(submit_all(batcher, range(8)))
        assert [type(one) for one in results] == [int] * 5 + [MemoryError] + [int] * 2

    async def test_those_who_leave_are_not_tried_again(self) -> None:
        """A caller cancelled during a failing batch is left out of the retry."""
        calls: list[list[int]] = []
        gate = threading.Event()

        def model(items: list[int]) -> list[int]:
            calls.append(items)
            gate.wait(5)
            if len(items) == 4:
                raise ValueError("too many")
            return items

        async with running(model) as batcher:
            tasks = submit_all(batcher, range(4))
            await until(lambda: calls)
            tasks[0].cancel()
            tasks[1].cancel()
            await until(tasks[1].done)
            gate.set()
            assert await outcomes(tasks[2:]) == [2, 3]
        assert calls == [[0, 1, 2, 3], [2, 3]]

    @pytest.mark.parametrize("answer", [[], [1, 2, 3], None], ids=["too few", "too many", "nothing"])
    async def test_a_wrong_number_of_results_is_an_error_not_a_mix_up(self, answer: list[int] | None) -> None:
        """No result is ever handed to a neighbour."""
        async with running(lambda _: answer) as batcher:
            results = await outcomes(submit_all(batcher, range(2)))
        assert all(isinstance(one, StageFailed | TypeError) for one in results)

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
    async def test_a_model_that_tries_to_exit_does_not_take_the_loop_along(self, error: BaseException) -> None:
        """The caller gets StageFailed and the batcher goes on."""
        answers: list[Any] = [error, None]

        def model(items: list[int]) -> list[int]:
            if (answer := answers.pop(0)) is not None:
                raise answer
            return items

        async with running(model) as batcher:
            with pytest.raises(StageFailed):
                await batcher.submit(1)
            assert (await batcher.submit(2)).result == 2

    async def test_a_failing_observer_harms_nobody(self) -> None:
        """Its exception is logged; results arrive."""

        class Broken(Notes):
            def batch_ran(self, *_: Any) -> None:
                raise RuntimeError("metrics are down")

        async with running(lambda items: items, observer=Broken()) as batcher:
            assert await outcomes(submit_all(batcher, range(9))) == list(range(9))


class TestIdle:
    """What stays when there is nothing to do."""

    async def test_an_idle_batcher_keeps_no_task(self) -> None:
        """Between two bursts nothing runs and nothing polls."""
        async with running(lambda items: items) as batcher:
            await batcher.submit(1)
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
            assert (await batcher.submit(2)).result == 2


class TestReporting:
    """What callers and observers get."""

    async def test_a_served_item_knows_its_wait_and_its_run(self) -> None:
        """Seconds in the queue, seconds in the model."""

        def nap(items: list[int]) -> list[int]:
            time.sleep(0.05)
            return items

        notes = Notes()
        async with running(nap, max_batch=2, observer=notes) as batcher:
            served = await asyncio.gather(*(batcher.submit(n) for n in range(3)))
        assert all(0.05 <= one.run_s < 0.05 + SLACK_S for one in served)
        assert served[0].wait_s < SLACK_S
        assert 0.05 <= served[2].wait_s < 0.05 + 2 * SLACK_S
        assert notes.sizes == [2, 1]
        assert notes.waits_s == [one.wait_s for one in served]

    @pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_wait_s": -1}, {"oom_recover_s": 0}], ids=str)
    def test_nonsense_settings_are_refused(self, wrong: dict[str, Any]) -> None:
        """Before any thread is made."""
        with pytest.raises(ConfigurationError):
            GreedyBatcher(lambda items: items, **{"max_batch": 1, "max_wait_s": 0.0, **wrong})

    def test_a_lowered_limit_climbs_back_by_doubling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """16 → 2 → (every 30 s) 4 → 8 → 16, never above."""
        now = [100]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        limit, seen = BatchLimit(16, recover_s=30), []
        limit.lower(2)
        for now[0] in (100, 129, 130, 159, 160, 220):
            seen.append(limit.now())
        assert seen == [2, 2, 4, 4, 8, 16]
        limit.lower(0)
        assert limit.now() == 1


@dataclass(frozen=True)
class Arrival:
    """One caller of the property test: when it comes, what its item does, and how it leaves."""

    gap_ms: int
    kind: str
    cancel_after_ms: int | None
    deadline_ms: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        gap_ms=st.sampled_from([0, 0, 0, 1, 3]),
        kind=st.sampled_from(["good", "good", "good", "bad", "poison", "heavy"]),
        cancel_after_ms=st.sampled_from([None, None, None, 0, 2]),
        deadline_ms=st.sampled_from([None, None, -5, 1, 5000]),
    ),
    max_size=24,
)


class TestAnyTraffic:
    """Property test: arbitrary arrivals, failures and cancellations."""

    @given(
        arrivals=ARRIVALS,
        max_batch=st.integers(1, 6),
        max_wait_ms=st.sampled_from([0, 2]),
        roomy=st.booleans(),
    )
    @settings(max_examples=60)
    def test_everyone_gets_its_own_outcome_once(
        self, arrivals: list[Arrival], max_batch: int, max_wait_ms: int, roomy: bool
    ) -> None:
        """Good items return their own result, bad ones their own error, cancelled ones nothing; no item succeeds twice."""
        done: list[int] = []
        batchers: list[GreedyBatcher[int, int]] = []

        def model(items: list[int]) -> list[int | Exception]:
            assert 1 <= len(items) <= max_batch
            if roomy:
                batchers[0].notify_capacity(len(items))
            time.sleep(0.001)
            kinds = [arrivals[item].kind for item in items]
            if "heavy" in kinds and len(items) > 1:
                raise MemoryError("too heavy together")
            if "poison" in kinds:
                raise ValueError(items[kinds.index("poison")])
            done.extend(items)
            return [KeyError(item) if kind == "bad" else 10 * item for item, kind in zip(items, kinds, strict=True)]

        async def call(batcher: GreedyBatcher[int, int], number: int) -> BatchResult[int]:
            after_ms = arrivals[number].deadline_ms
            deadline = None if after_ms is None else time.time() + after_ms / 1000
            return await batcher.submit(number, deadline=deadline)

        async def play() -> list[Any]:
            batcher: GreedyBatcher[int, int] = GreedyBatcher(
                model, max_batch=max_batch, max_wait_s=max_wait_ms / 1000, oom_recover_s=0.005
            )
            batchers.append(batcher)
            tasks = []
            for number, arrival in enumerate(arrivals):
                await asyncio.sleep(arrival.gap_ms / 1000)
                tasks.append(asyncio.create_task(call(batcher, number)))
                if arrival.cancel_after_ms is not None:
                    asyncio.get_running_loop().call_later(arrival.cancel_after_ms / 1000, tasks[-1].cancel)
            async with asyncio.timeout(10):
                results = await outcomes(tasks)
                await idle(batcher)
            assert batcher.queue_length == 0
            batcher._threads.shutdown()
            return results

        threads = threading.active_count()
        for number, outcome in enumerate(asyncio.run(play())):
            self._check(number, arrivals[number], outcome)
        assert len(done) == len(set(done))
        assert threading.active_count() == threads

    def _check(self, number: int, arrival: Arrival, outcome: Any) -> None:
        if isinstance(outcome, asyncio.CancelledError):
            assert arrival.cancel_after_ms is not None
        elif isinstance(outcome, DeadlineExceeded):
            assert arrival.deadline_ms is not None
        elif arrival.kind == "bad":
            assert (type(outcome), outcome.args) == (KeyError, (number,))
        elif arrival.kind == "poison":
            assert (type(outcome), outcome.args) == (ValueError, (number,))
        else:
            assert outcome == 10 * number
