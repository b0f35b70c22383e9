"""What counts as felt by the honest; the real thing is `python -m tests.security.floods`."""

import pytest

from loadtest.openloop import Query
from loadtest.watch import Sample
from tests.security.floods import FLOODS, Step, as_expected, as_table, by_stage, mean_cores, stages_table, times_p99

FLOOD, OF_URLS = next(name for name, flood in FLOODS.items() if not flood.of_urls), "name server that does not answer"


def step(name: str, p99_ms: float | None, failed: int = 0, peak_mb: float = 1000.0) -> Step:
    return Step(name, 10, failed, 1.0, p99_ms, peak_mb, {})


def test_a_flood_is_compared_with_the_steps_around_it() -> None:
    """With the slower of the two, which shows the machine's own noise."""
    steps = [
        step("none", 100.0),
        step(FLOOD, 220.0),
        step("none", 200.0),
        step("none, URLs", 300.0),
        step(OF_URLS, 330.0),
        step("none, URLs", 250.0),
    ]
    assert [times_p99(one, steps) for one in steps] == [None, pytest.approx(1.1), None, None, pytest.approx(1.1), None]
    assert as_expected(steps)
    assert "1.1" in as_table(steps)


@pytest.mark.parametrize(
    "bad",
    [step(FLOOD, 301.0), step(FLOOD, 100.0, failed=1), step(FLOOD, 100.0, peak_mb=4001.0), step(FLOOD, None)],
    ids=["slow", "failed", "memory", "no answer at all"],
)
def test_what_is_not_as_expected(bad: Step) -> None:
    assert not as_expected([step("none", 200.0), bad, step("none", 150.0)])
    assert not as_expected([bad])


def test_where_the_slowest_answers_lost_their_time() -> None:
    """Nineteen take 40 ms; one is sent 100 ms late and waits 200 ms for a batch."""
    usual = [Query(at, at + 0.001, at + 0.040, "ok", {"wait": 20.0, "detect": 15.0}) for at in range(19)]
    late = Query(30.0, 30.1, 30.35, "ok", {"wait": 20.0, "queue": 200.0, "detect": 15.0})
    median_ms, slowest_ms = by_stage([*usual, late])
    assert median_ms == pytest.approx({"wait": 20.0, "detect": 15.0, "send": 1.0, "rest": 4.0})
    assert slowest_ms == pytest.approx({"wait": 20.0, "queue": 200.0, "detect": 15.0, "send": 100.0, "rest": 15.0})
    table = stages_table([Step("none", 20, 0, 40.0, 350.0, 1000.0, {}, median_ms, slowest_ms, {"Detector": 0.5})])
    assert "200.0" in table
    assert "Detector 0.50" in table


def test_cores_are_means_over_time() -> None:
    """A short sample counts less than a long one."""
    samples = [Sample(at_s, {}, {"Ingress": cores}, {}) for at_s, cores in ((0.0, 0.0), (1.0, 1.0), (4.0, 0.2))]
    assert mean_cores(samples) == pytest.approx({"Ingress": 0.4})
