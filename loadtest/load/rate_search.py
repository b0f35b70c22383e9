"""Searches the highest rate that meets a bound: brackets it by doubling or halving, bisects, then confirms it by repeats.

start ─▶ double while it holds / halve while it does not ─▶ bisect to PRECISION ─▶ repeats ─▶ (step down until they hold)
                    └──────────── NoMoreTrials, from a trial: the highest rate so far that never failed ────────────┘
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

PRECISION = 1.08
STEP_DOWN = 0.92
LOWEST_PER_S = 0.1
HIGHEST_PER_S = 20_000.0

Trial = Callable[[float], Awaitable[bool]]
"""Runs a trial at a rate (queries/s), returns whether the bound was met; or raises NoMoreTrials."""


class NoMoreTrials(Exception):
    """The search has used up its time or its trials."""


async def highest_rate(trial: Trial, start_per_s: float, repeats: int = 3) -> float | None:
    """Search; None when not even LOWEST_PER_S holds, or nothing held before the trials were used up.

    Args:
        trial: called once for each rate; its result may be noisy.
        start_per_s: a first guess.
        repeats: trials at the found rate that must all hold; else the rate is lowered by STEP_DOWN and tried again.
    """
    held: dict[float, bool] = {}

    async def remembered(rate_per_s: float) -> bool:
        holds = await trial(rate_per_s)
        held[rate_per_s] = holds and held.get(rate_per_s, True)
        return holds

    try:
        return await _search(remembered, start_per_s, repeats)
    except NoMoreTrials:
        return max((rate for rate, holds in held.items() if holds), default=None)


async def _search(trial: Trial, start_per_s: float, repeats: int) -> float | None:
    low, high = await _bracket(trial, start_per_s)
    if low is None:
        return None
    while high is not None and high / low > PRECISION:
        middle = (low * high) ** 0.5
        if await trial(middle):
            low = middle
        else:
            high = middle
    return await _confirmed(trial, low, repeats)


async def _bracket(trial: Trial, start_per_s: float) -> tuple[float | None, float | None]:
    """A rate that held and the next one that did not; None for a side that does not exist."""
    rate = start_per_s
    if await trial(rate):
        while rate * 2 <= HIGHEST_PER_S:
            rate *= 2
            if not await trial(rate):
                return rate / 2, rate
        return rate, None
    while rate / 2 >= LOWEST_PER_S:
        rate /= 2
        if await trial(rate):
            return rate, rate * 2
    return None, rate


async def _confirmed(trial: Trial, rate: float, repeats: int) -> float | None:
    while rate >= LOWEST_PER_S:
        for _ in range(repeats):
            if not await trial(rate):
                break
        else:
            return rate
        rate *= STEP_DOWN
    return None
