"""The scenarios, against servers whose limit is known."""

from loadtest.load import scenarios
from loadtest.load.openloop import Client, Query, summarise
from loadtest.load.rate_search import PRECISION
from loadtest.load.scenarios import Setup, find_server_rate, run_offline, run_steady
from loadtest.load.traffic import OK, request_bodies
from tests.support.fake_service import BODIES, fake_service

LIMIT_PER_S = 250


async def test_slow_server_is_not_searched():
    """Where one caller alone waits longer than the bound, no rate is tried."""
    async with fake_service(step_s=0.1) as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, Setup(p99_ms=50))
    assert (result["rate_per_s"], result["trials"], result["confirmed"]) == (None, [], None)
    assert result["alone_p50_ms"] > 100


async def test_server_scenario_out_of_trials():
    """A limit on trials gives what was found, and says so."""
    setup = Setup(p99_ms=5000, seconds=0.1, pause_s=0.01, start_per_s=200, max_trials=1)
    async with fake_service(servers=100) as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, setup)
    assert (result["rate_per_s"], result["finished"], len(result["trials"])) == (200, False, 1)


async def test_server_scenario_out_of_time():
    """A trial that would outlast the search is not begun: 100 queries at 1/s take 100 s."""
    setup = Setup(p99_ms=100, start_per_s=1, max_search_s=50)
    async with fake_service() as url, Client(url, BODIES) as client:
        result = await find_server_rate(client, setup)
    assert (result["rate_per_s"], result["finished"], result["trials"]) == (None, False, [])


async def test_server_scenario(monkeypatch):
    """The limit is found, and its confirming trials are told apart from those of the search."""

    async def offer(client, setup, rate_per_s, _seed):
        latency_s = 0.01 if rate_per_s <= LIMIT_PER_S else 9
        return summarise([Query(0, 0, latency_s, OK)] * 100, setup.p99_ms, rate_per_s, client.images)

    monkeypatch.setattr(scenarios, "offer", offer)
    async with fake_service() as url, Client(url, request_bodies([b"a", b"b"], 2), images=2) as client:
        result = await find_server_rate(client, Setup(p99_ms=5000, repeats=2, pause_s=0, start_per_s=100))
    rate = result["rate_per_s"]
    assert LIMIT_PER_S / PRECISION <= rate <= LIMIT_PER_S
    assert (result["images_per_s"], result["finished"], result["confirmed"]["offered_per_s"]) == (2 * rate, True, rate)
    assert [trial["offered_per_s"] for trial in result["trials"][-2:]] == [rate, rate]


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


async def test_patience_outlasts_client():
    """Offline waits for answers that its client's own timeout would give up on."""
    async with fake_service(step_s=0.3) as url, Client(url, BODIES, timeout_s=0.05) as client:
        result = await run_offline(client, Setup(offline_images=2))
    assert result["summary"]["ok"] == 2
