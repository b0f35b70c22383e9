"""The search for the highest rate, against limits that are known."""

import pytest

from loadtest.load.rate_search import PRECISION, STEP_DOWN, NoMoreTrials, highest_rate


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
    """Out of trials, the highest rate that never failed is the result; None if none held."""

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
