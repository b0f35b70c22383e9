"""What counts as felt by the honest; the real thing is `python -m tests.security.floods`."""

from dataclasses import replace

import pytest

from loadtest.load.openloop import Query
from loadtest.load.traffic import OK
from loadtest.service.watch import Sample
from tests.security.floods import (
    FLOODS,
    Step,
    Trial,
    as_expected,
    as_table,
    by_stage,
    mean_cores,
    stages_table,
    summed_up,
    times_p99,
)

FLOOD, OF_URLS = next(name for name, flood in FLOODS.items() if not flood.of_urls), "name server that does not answer"


def step(name: str, p99_ms: float | None, failed: int = 0, peak_mb: float = 1000.0) -> Step:
    return Step(name, 10, failed, 1.0, p99_ms, [p99_ms], peak_mb, {})


def test_a_flood_is_compared_with_the_step_without_it() -> None:
    steps = [step("none", 200.0), step(FLOOD, 220.0), step("none, URLs", 300.0), step(OF_URLS, 330.0)]
    assert [times_p99(one, steps) for one in steps] == [None, pytest.approx(1.1), None, pytest.approx(1.1)]
    assert as_expected(steps)
    assert "1.1" in as_table(steps)


def test_a_step_has_the_requests_of_all_its_trials() -> None:
    """One slow trial of three: p99 is of all 300 requests, not the mean or the slowest of the trials'."""
    answers_ms = [[50.0] * 100, [50.0] * 100, [50.0] * 98 + [300.0, 400.0]]
    trials = [
        Trial([Query(0.0, 0.0, ms / 1e3, OK, {"detect": 20.0}) for ms in times], 900.0 + n, {"Detector": 0.1 * n}, {"200": 5})
        for n, times in enumerate(answers_ms)
    ]
    trials[0] = replace(trials[0], queries=[*trials[0].queries, Query(0.0, 0.0, 9.0, "timeout")])
    summed = summed_up(FLOOD, trials)
    assert (summed.asked, summed.failed, summed.p50_ms, summed.p99_ms) == (301, 1, 50.0, 50.0)
    assert (summed.p99s_ms, summed.peak_mb, summed.flood) == ([50.0, 50.0, 300.0], 902.0, {"200": 15})
    assert summed.cores == pytest.approx({"Detector": 0.1})
    assert "50 to 300" in as_table([summed])


@pytest.mark.parametrize(
    "bad",
    [step(FLOOD, 301.0), step(FLOOD, 100.0, failed=1), step(FLOOD, 100.0, peak_mb=4001.0), step(FLOOD, None)],
    ids=["slow", "failed", "memory", "no answer at all"],
)
def test_what_is_not_as_expected(bad: Step) -> None:
    assert not as_expected([step("none", 200.0), bad])
    assert not as_expected([step("none", None), bad])
    assert not as_expected([bad])


def test_where_the_slowest_answers_lost_their_time() -> None:
    """Nineteen take 40 ms; one is sent 100 ms late and waits 200 ms for a batch."""
    usual = [Query(at, at + 0.001, at + 0.040, "ok", {"wait": 20.0, "detect": 15.0}) for at in range(19)]
    late = Query(30.0, 30.1, 30.35, "ok", {"wait": 20.0, "queue": 200.0, "detect": 15.0})
    median_ms, slowest_ms = by_stage([*usual, late])
    assert median_ms == pytest.approx({"wait": 20.0, "detect": 15.0, "send": 1.0, "rest": 4.0})
    assert slowest_ms == pytest.approx({"wait": 20.0, "queue": 200.0, "detect": 15.0, "send": 100.0, "rest": 15.0})
    table = stages_table([Step("none", 20, 0, 40.0, 350.0, [350.0], 1000.0, {}, median_ms, slowest_ms, {"Detector": 0.5})])
    assert "200.0" in table
    assert "Detector 0.50" in table


def test_cores_are_means_over_time() -> None:
    """A short sample counts less than a long one."""
    samples = [Sample(at_s, {}, {"Ingress": cores}, {}) for at_s, cores in ((0.0, 0.0), (1.0, 1.0), (4.0, 0.2))]
    assert mean_cores(samples) == pytest.approx({"Ingress": 0.4})
