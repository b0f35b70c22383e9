"""Percentiles, the scheduled send time, refusals and the rate search, against servers whose latency is known."""

import orjson
import pytest

from loadtest.load.openloop import Client, Query, percentile, poisson_schedule, run_open_loop, run_single_stream, summarise
from loadtest.load.rate_search import PRECISION, STEP_DOWN, NoMoreTrials, highest_rate
from loadtest.load.scenarios import Setup, find_server_rate, run_offline, run_steady
from loadtest.load.traffic import OK, RemoteHostError, Wire, outcome_of, refuse_remote, request_bodies, stages_of
from tests.support.fake_service import ANSWER, fake_service

BODIES = request_bodies([b"photo"], 1)


def queries(latencies_ms, outcome=OK):
    return [Query(number, number, number + ms / 1e3, outcome) for number, ms in enumerate(latencies_ms)]


def test_percentiles():
    """p99 of 1..100 ms is 100 ms: a value that occurred, never one in between."""
    summary = summarise(queries(range(1, 101)), 250)
    assert (summary.p50_ms, summary.p99_ms) == (pytest.approx(51), pytest.approx(100))


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
    """Poisson arrivals have the asked mean, and a seed makes them again."""
    times = poisson_schedule(100, 10_000, seed=1)
    assert times[-1] == pytest.approx(100, rel=0.05)
    assert times == poisson_schedule(100, 10_000, seed=1) != poisson_schedule(100, 10_000, seed=2)


async def test_no_coordinated_omission():
    """A stall of 0.5 s is seen by every query that was due in it; a closed loop sees it once."""
    async with fake_service(stall=(20, 0.5)) as url, Client(url, BODIES) as client:
        opened = summarise(await run_open_loop(client, [n * 0.01 for n in range(100)], 5), 100)
    async with fake_service(stall=(20, 0.5)) as url, Client(url, BODIES) as client:
        closed = summarise(await run_single_stream(client, 1.0), 100)
    assert opened.ok == 100
    assert opened.missed > 0.3  # 0.4 s of the stall at 100/s, and the queue after it
    assert closed.ok * closed.missed == pytest.approx(1)


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


async def test_patience_outlasts_client():
    """Offline waits for answers that its client's own timeout would give up on."""
    async with fake_service(step_s=0.3) as url, Client(url, BODIES, timeout_s=0.05) as client:
        result = await run_offline(client, Setup(offline_images=2))
    assert result["summary"]["ok"] == 2


async def test_nobody_listens():
    """A refused connection is an outcome, not an exception."""
    async with Client("http://127.0.0.1:9", BODIES) as client:
        asked = await client.ask(0, 0.0, 0.0)
    assert asked.outcome.startswith("connection")


async def test_search_finds_known_limit():
    """A noiseless limit of 37/s is found from both sides, to the search's precision."""

    async def holds(rate):
        return rate <= 37

    for start in (1, 37, 1000):
        assert 37 / PRECISION <= await highest_rate(holds, start) <= 37


async def test_search_confirms_by_repeats():
    """A rate that held once by luck is stepped down until it holds every time."""
    lucky = iter([True, False])

    async def holds(rate):
        return next(lucky, rate <= 80)

    assert await highest_rate(holds, 100) == pytest.approx(100 * STEP_DOWN**3)


async def test_search_finds_nothing():
    """Where no rate holds, the result is None and not 0."""

    async def never(_rate):
        return False

    assert await highest_rate(never, 10) is None


async def test_search_ends_early():
    """Out of trials, the highest rate that never failed is the result; None where none held."""

    async def refuses(_rate):
        raise NoMoreTrials

    allowed = iter([True, True, False, True])  # 10, 20, 40, then between: 28.3

    async def four_trials(_rate):
        try:
            return next(allowed)
        except StopIteration:
            raise NoMoreTrials from None

    assert await highest_rate(refuses, 10) is None
    assert await highest_rate(four_trials, 10) == pytest.approx(800**0.5)


async def test_slow_server_is_not_searched():
    """Where one caller alone waits longer than the bound, no rate is tried."""
    async with fake_service(step_s=0.1) as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, Setup(p99_ms=50))
    assert (result["rate_per_s"], result["trials"], result["confirmed"]) == (None, [], None)
    assert result["alone_p50_ms"] > 100


async def test_server_scenario_out_of_trials():
    """A limit on trials gives what was found, and says so."""
    setup = Setup(p99_ms=100, seconds=0.1, pause_s=0.01, start_per_s=200, max_trials=1)
    async with fake_service(servers=100) as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, setup)
    assert (result["rate_per_s"], result["finished"], len(result["trials"])) == (200, False, 1)


async def test_server_scenario_out_of_time():
    """A trial that would outlast the search is not begun: 100 queries at 1/s take 100 s."""
    setup = Setup(p99_ms=100, start_per_s=1, max_search_s=50)
    async with fake_service() as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, setup)
    assert (result["rate_per_s"], result["finished"], result["trials"]) == (None, False, [])


async def test_server_scenario():
    """One server of 4 ms carries about 250/s in a trial of 100 queries, and not much less than half of it on a busy machine."""
    async with fake_service(step_s=0.004) as url, Client(url, BODIES) as client:
        setup = Setup(p99_ms=150, seconds=0.3, repeats=1, pause_s=0.05, start_per_s=100)
        result = await find_server_rate(client, setup)
    assert 75 < result["rate_per_s"] < 320
    assert result["confirmed"]["missed"] <= 0.01


async def test_steady_scenario():
    """One rate, held or not: 100 queries at 200/s against a server that carries 100/s are all answered, late."""
    async with fake_service(step_s=0.01) as url, Client(url, BODIES) as client:
        result = await run_steady(client, Setup(p99_ms=20, seconds=0.1, rate_per_s=200))
    assert result["summary"]["ok"] == 100
    assert result["summary"]["missed"] > 0.5


async def test_offline_scenario():
    """All at once: 40 images in requests of 2 on four servers of 50 ms take about 250 ms, on one server a second."""
    bodies = request_bodies([b"a", b"b"], 2)
    async with fake_service(step_s=0.05, servers=4) as url, Client(url, bodies, images=2) as client:
        result = await run_offline(client, Setup(offline_images=40))
    assert result["summary"]["ok"] == 20
    assert 50 < result["summary"]["images_per_s"] < 161


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"<html>", "wrong answer: not JSON"),
        (b"{}", "wrong answer: not a list"),
        (b"[]", "wrong answer: 0 results for 1 images"),
        (b'[{"boxes": null}]', "wrong answer: a result without boxes"),
        (b'[{"boxes": [], "error": {}}]', "wrong answer: an image was not scored"),
        (b'[{"boxes": []}]', OK),
    ],
)
def test_wrong_answers(answer, fault):
    """A 200 whose body is no answer is a failure that says what is wrong."""
    assert outcome_of(200, {}, answer, 1) == fault


def test_refusal_names():
    """A refusal says when to come back; a 503 that does not is another thing."""
    assert outcome_of(503, {"retry-after": "1"}, b"", 1) == "refused 503"
    assert outcome_of(503, {}, b"", 1) == "503 without Retry-After"
    assert outcome_of(422, {}, b"", 1) == "status 422"


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://example.com", "http://127.0.0.1.example.com", "8000", ""])
def test_remote_is_refused(url):
    """Only this machine may be loaded without --allow-remote."""
    with pytest.raises(RemoteHostError):
        refuse_remote(url, allow_remote=False)
    refuse_remote(url, allow_remote=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"])
def test_loopback_is_allowed(url):
    """Loopback by number or name."""
    refuse_remote(url, allow_remote=False)


def test_stages():
    """Server-Timing as the service writes it; other entries do not hurt."""
    assert stages_of("decode;dur=1.5, detect;dur=20, cache;desc=x") == {"decode": 1.5, "detect": 20.0}
    assert stages_of(None) == {}
