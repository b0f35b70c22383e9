import asyncio
import copy

import pytest
import yaml

from deployments.settings import Settings
from loadtest.load.openloop import Client, Query
from loadtest.measurements.spike import as_png, as_table, recovery_s, run_clients, scale_by_itself, summarise_spike
from loadtest.service.local_service import SHIPPED_CONFIG
from loadtest.service.watch import Sample
from tests.support.fake_service import BODIES, fake_service


def queries(latency_ms_of):
    """One query every 0.1 s for 40 s."""
    return [Query(i / 10, i / 10, i / 10 + latency_ms_of(i / 10) / 1e3, "ok") for i in range(400)]


def test_recovery_ends_with_the_last_window_over_the_bound():
    slow_until_13 = queries(lambda at: 900 if 10 <= at < 13 else 50)
    assert recovery_s(slow_until_13, 10.0, 30.0, 500) == pytest.approx(4.0)


def test_a_bound_that_always_held_needs_no_recovery():
    assert recovery_s(queries(lambda _: 50), 10.0, 30.0, 500) == 0.0


def test_a_bound_that_never_holds_again():
    assert recovery_s(queries(lambda at: 900 if at > 10 else 50), 10.0, 30.0, 500) is None


def test_a_window_without_answers_does_not_hold():
    silent = [query for query in queries(lambda _: 50) if not 12 <= query.done_s < 18]
    assert recovery_s(silent, 10.0, 30.0, 500) == pytest.approx(8.0)


def test_clients_ask_one_after_the_other_in_their_phases():
    async def run():
        async with fake_service(step_s=0.1, servers=100) as url, Client(url, BODIES) as client:
            return await run_clients(client, [(1, 0.6), (5, 0.6), (1, 0.6)])

    asked = asyncio.run(run())
    few, many, late = (sum(begin <= query.scheduled_s < begin + 0.6 for query in asked) for begin in (0.0, 0.6, 1.2))
    assert {query.outcome for query in asked} == {"ok"}
    assert many > 2 * few > 0
    assert late > 0


def test_the_summary_names_replicas_failures_and_recovery():
    samples = [Sample(at, {"Detector": 1 if at < 14 else 3}, {"Detector": 0.5}, {"Detector": 100.0}) for at in range(40)]
    asked = [*queries(lambda at: 900 if 10 <= at < 13 else 50), Query(11.0, 11.0, 12.0, "status 500")]
    result = summarise_spike(asked, samples, [(1, 10.0), (10, 20.0), (1, 10.0)], 500)
    before, spike, after = result.phases
    assert (before.most_replicas, spike.most_replicas, after.most_replicas) == ({"Detector": 1}, {"Detector": 3}, {"Detector": 3})
    assert (before.failed, spike.failed) == (0, 1)
    assert result.recovered_s == pytest.approx(4.0)
    assert "4 s after the spike began" in as_table(result)
    assert as_png(result).startswith(b"\x89PNG")


def test_the_shipped_configuration_can_be_changed_so():
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    before = copy.deepcopy(document)
    scale_by_itself(document)
    (application,) = document["applications"]
    assert Settings(**application["args"]).detector.engine == "simulated"
    scaling = {deployment["name"] for deployment in application["deployments"] if "autoscaling_config" in deployment}
    assert scaling == {"ImageLoader", "Detector", "Polygonizer"}
    assert document["http_options"] == before["http_options"]
