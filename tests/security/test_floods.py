"""What counts as felt by the honest; the real thing is `python -m tests.security.floods`."""

import pytest

from tests.security.floods import FLOODS, Step, as_expected, as_table, times_p99

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
