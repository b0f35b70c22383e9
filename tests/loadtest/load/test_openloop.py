"""Percentiles, the scheduled send time, refusals and trials that are cut short, against servers whose latency is known."""

import itertools
import statistics

import orjson
import pytest

from loadtest.load.openloop import Client, Query, percentile, poisson_schedule, run_open_loop, run_single_stream, summarise
from loadtest.load.traffic import OK, Wire
from tests.support.fake_service import ANSWER, BODIES, fake_service


def queries(latencies_ms, outcome=OK):
    return [Query(number, number, number + ms / 1e3, outcome) for number, ms in enumerate(latencies_ms)]


def test_percentiles():
    """By nearest rank: p99 of 1..100 ms is 99 ms, a value that occurred; so p99 meets a bound exactly if the trial holds it."""
    summary = summarise(queries(range(1, 101)), 99.5)
    assert (summary.p50_ms, summary.p99_ms) == (pytest.approx(50), pytest.approx(99))
    assert (summary.missed, summary.holds) == (0.01, True)
    assert not summarise(queries(range(1, 101)), 98.5).holds


def test_nothing_is_none():
    """An empty sample has no percentile, no rate and does not hold a bound."""
    assert percentile([], 99) is None
    summary = summarise([], 250)
    assert (summary.p99_ms, summary.missed, summary.goodput_per_s, summary.images_per_s) == (None, None, None, None)
    assert not summary.holds


def test_all_refused_has_no_latency():
    """Refusals are counted by name, have a latency of their own, and all miss the bound."""
    summary = summarise(queries([5] * 10, "refused 503"), 250)
    assert summary.outcomes == {"refused 503": 10}
    assert (summary.p50_ms, summary.missed) == (None, 1)
    assert summary.refused_p99_ms == pytest.approx(5)


@pytest.mark.parametrize(("failures", "holds"), [(1, True), (2, False)])
def test_failures_miss_the_bound(failures, holds):
    """Fast failures do not make p99 look good: two in a hundred break it."""
    assert summarise(queries([1] * (100 - failures)) + queries([1] * failures, "status 500"), 250).holds is holds


def test_schedule():
    """Poisson arrivals: exponential gaps, whose standard deviation is their mean. A seed makes them again."""
    times = poisson_schedule(100, 10_000, seed=1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert (statistics.fmean(gaps), statistics.stdev(gaps)) == (pytest.approx(0.01, rel=0.01), pytest.approx(0.01, rel=0.05))
    assert times == poisson_schedule(100, 10_000, seed=1) != poisson_schedule(100, 10_000, seed=2)


@pytest.mark.parametrize("seed", range(10))
def test_few_queries_have_the_asked_rate(seed):
    """100 queries at 5/s are due within 20 s and take nearly that long."""
    assert 17 < max(poisson_schedule(5, 100, seed)) <= 20


async def test_no_coordinated_omission():
    """A stall of 0.5 s is seen by every query that was due in it; a closed loop sees it in one of its queries."""
    async with fake_service(stall=(20, 0.5)) as url, Client(url, BODIES) as client:
        opened = summarise(await run_open_loop(client, [n * 0.01 for n in range(100)], 5), 100)
    async with fake_service(stall=(20, 0.5)) as url, Client(url, BODIES) as client:
        closed = summarise(await run_single_stream(client, 1.0), 100)
    assert opened.ok == 100
    assert opened.missed > 0.3  # 0.4 s of the stall at 100/s, and the queue after it
    assert 0 < closed.missed < 0.1  # one, and any that the machine delays


async def test_wire():
    """A server with a request and an answer of its own is asked in them, and judged by what they mean."""
    nested = orjson.dumps({"outputs": [ANSWER]})
    wire = Wire(
        "/score",
        lambda body: orjson.dumps({"input_data": orjson.loads(body)}),
        lambda body: orjson.dumps(orjson.loads(body)["outputs"]),
    )
    async with fake_service(answer=nested) as url, Client(url, [b'{"data": ["photo"]}'], wire=wire) as client:
        assert (await client.ask(0, 0.0, 0.0)).outcome == OK
    async with fake_service() as url, Client(url, BODIES, wire=Wire("/elsewhere")) as client:
        missing = await client.ask(0, 0.0, 0.0)
    assert (missing.outcome, missing.message) == ("status 404", "404: Not Found")


async def test_latency_counts_from_schedule():
    """A client that is late itself does not hide it."""
    async with fake_service() as url, Client(url, BODIES) as client:
        asked = await client.ask(0, began=-1e9, scheduled_s=0.0)
    assert asked.latency_ms > 1e9


async def test_refusals_and_stages():
    """Under overload every query is answered or refused, none is dropped; stages come from server-timing."""
    async with fake_service(step_s=0.02, max_waiting=4) as url, Client(url, BODIES) as client:
        summary = summarise(await run_open_loop(client, [n * 0.002 for n in range(100)], 5), 250, 500)
    assert set(summary.outcomes) == {OK, "refused 503"}
    assert sum(summary.outcomes.values()) == summary.queries == 100
    assert summary.stages_ms == {"decode": 1.5, "detect": 20.0}


async def test_unanswered_are_counted():
    """What is not answered in time is a miss of its own name."""
    async with fake_service(step_s=3) as url, Client(url, BODIES) as client:
        summary = summarise(await run_open_loop(client, [0.0, 0.01], 0.1), 250)
    assert summary.outcomes == {"unanswered": 2}
    assert summary.missed == 1


async def test_lost_trial_is_cut_short():
    """Two failures in a hundred decide it: the rest is not sent, and counts as missed."""
    async with fake_service(answer=b"[]") as url, Client(url, BODIES) as client:
        asked = await run_open_loop(client, [n * 0.05 for n in range(100)], 1, bound_ms=250)
    summary = summarise(asked, 250)
    assert len(asked) == summary.queries == 100
    assert summary.outcomes["abandoned"] > 90
    assert summary.cut_short
    assert summary.missed == 1
    assert summary.took_s < 4  # of what was sent; the whole schedule has 5 s
    assert summary.send_lag_p99_ms >= 0


async def test_stalled_trial_is_cut_short():
    """A server that never answers is not sent the whole schedule."""
    async with fake_service(step_s=5) as url, Client(url, BODIES) as client:
        summary = summarise(await run_open_loop(client, [n * 0.01 for n in range(500)], 0.1, bound_ms=50), 50)
    assert set(summary.outcomes) == {"unanswered", "abandoned"}
    assert summary.outcomes["unanswered"] < 100  # 0.2 s at 100/s, with room for a busy machine


async def test_holding_trial_is_not_cut_short():
    """One late query in a hundred is allowed and changes nothing."""
    async with fake_service(stall=(50, 0.6), servers=50) as url, Client(url, BODIES) as client:
        summary = summarise(await run_open_loop(client, [n * 0.005 for n in range(100)], 1, bound_ms=500), 500)
    assert summary.outcomes == {OK: 100}
    assert not summary.cut_short


async def test_nobody_listens():
    """A refused connection is an outcome, not an exception."""
    async with Client("http://127.0.0.1:9", BODIES) as client:
        asked = await client.ask(0, 0.0, 0.0)
    assert asked.outcome.startswith("connection")
