"""Load scenarios on one client. Borrowed in shape from MLPerf Inference; these are not MLPerf results.

single-stream  one client in a closed loop
server         Poisson arrivals; the highest rate whose p99 holds the bound
steady         Poisson arrivals at one rate
offline        everything queued at once
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from jobs.command_line import print_progress
from loadtest.load.openloop import (
    STALE_BOUNDS,
    Client,
    Summary,
    poisson_schedule,
    run_open_loop,
    run_single_stream,
    summarise,
    whole_ms,
)
from loadtest.load.rate_search import NoMoreTrials, highest_rate

MIN_QUERIES = 100
"""Fewest queries of a trial; fewer have no 99th percentile."""

OFFLINE_PATIENCE_S = 600.0
"""Offline: queries not answered after this time count as failed, seconds."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """How a scenario is run.

    Args:
        p99_ms: the latency bound.
        seconds: length of one trial; longer if MIN_QUERIES need it.
        seed: of the arrivals; every trial has its own, derived from it.
        repeats: confirming trials of the found rate.
        pause_s: pause between trials, for the queue to empty.
        offline_images: images of the offline scenario; a slow service wants fewer, all are due within OFFLINE_PATIENCE_S.
        rate_per_s: of the steady scenario.
        start_per_s: first rate of the search; None starts at half the rate of a single closed-loop client.
        max_trials, max_search_s: limits of the search, which then returns what it has found.
    """

    p99_ms: float = 250.0
    seconds: float = 10.0
    seed: int = 0
    repeats: int = 3
    pause_s: float = 1.0
    offline_images: int = 256
    rate_per_s: float = 5.0
    start_per_s: float | None = None
    max_trials: int = 60
    max_search_s: float = 1200.0


async def run_stream(client: Client, setup: Setup) -> Result:
    """SingleStream: latencies of one closed-loop client."""
    summary = summarise(await run_single_stream(client, setup.seconds), setup.p99_ms, images_per_query=client.images)
    print_progress(_line("single stream", summary))
    return {"scenario": "single-stream", "summary": asdict(summary)}


async def run_offline(client: Client, setup: Setup) -> Result:
    """Offline: all images are sent at once; measures the time until the last answer."""
    count = max(1, setup.offline_images // client.images)
    queries = await run_open_loop(client, [0.0] * count, OFFLINE_PATIENCE_S)
    summary = summarise(queries, None, images_per_query=client.images)
    print_progress(_line("offline", summary))
    return {"scenario": "offline", "images": count * client.images, "summary": asdict(summary)}


async def run_steady(client: Client, setup: Setup) -> Result:
    """Steady: one rate, whether or not it meets the bound."""
    count = max(MIN_QUERIES, round(setup.rate_per_s * setup.seconds))
    queries = await run_open_loop(client, poisson_schedule(setup.rate_per_s, count, setup.seed), client.timeout_s)
    summary = summarise(queries, setup.p99_ms, setup.rate_per_s, client.images)
    print_progress(_line(f"{setup.rate_per_s:.2f}/s", summary))
    return {"scenario": "steady", "bound_p99_ms": setup.p99_ms, "summary": asdict(summary)}


async def find_server_rate(client: Client, setup: Setup) -> Result:
    """Server: search the highest rate, with confirming trials.

    Returns:
        `rate_per_s` (queries; None if none holds), `alone_p50_ms` (of one caller; above the bound no rate is tried),
        `confirmed` (the median-p99 trial at that rate), `trials` (all, in order), `finished` (False if the search ran out
        of trials or time: the rate is then the highest that held so far).
    """
    trials: list[Summary] = []
    began, finished = time.perf_counter(), True

    async def holds(rate_per_s: float) -> bool:
        """Run a trial; whether it met the bound. Raises NoMoreTrials when a limit of the search is reached."""
        nonlocal finished
        ends_s = time.perf_counter() - began + max(setup.seconds, MIN_QUERIES / rate_per_s)
        if len(trials) >= setup.max_trials or ends_s > setup.max_search_s:
            finished = False
            raise NoMoreTrials
        summary = await offer(client, setup, rate_per_s, setup.seed + len(trials))
        trials.append(summary)
        print_progress(_line(f"{rate_per_s:8.2f}/s {'holds' if summary.holds else 'does not hold'}", summary))
        await asyncio.sleep(setup.pause_s)
        return summary.holds

    alone = summarise(await run_single_stream(client, 1.0), None)
    alone_ms = alone.p50_ms
    rate = None
    if alone_ms is not None and alone_ms <= setup.p99_ms:
        rate = await highest_rate(holds, setup.start_per_s or 500.0 / alone_ms, setup.repeats)
    else:
        waits = f"{alone_ms:.0f} ms" if alone_ms else "without an answer"
        print_progress(f"a single client waits {waits} ({alone.outcomes}): no rate can meet {setup.p99_ms:g} ms")
    confirming = [trial for trial in trials if trial.offered_per_s == rate][-setup.repeats :]
    return {
        "scenario": "server",
        "bound_p99_ms": setup.p99_ms,
        "rate_per_s": rate,
        "images_per_s": None if rate is None else rate * client.images,
        "alone_p50_ms": alone_ms,
        "finished": finished,
        "confirmed": asdict(_median_trial(confirming)) if confirming else None,
        "trials": [asdict(trial) for trial in trials],
    }


async def offer(client: Client, setup: Setup, rate_per_s: float, seed: int) -> Summary:
    """One trial at a rate; stops early if it has failed. Waits for answers until well past the bound."""
    count = max(MIN_QUERIES, round(rate_per_s * setup.seconds))
    schedule = poisson_schedule(rate_per_s, count, seed)
    queries = await run_open_loop(client, schedule, setup.p99_ms / 1e3 * STALE_BOUNDS + 1, setup.p99_ms)
    return summarise(queries, setup.p99_ms, rate_per_s, client.images)


def _median_trial(trials: list[Summary]) -> Summary:
    middle = statistics.median_low([trial.p99_ms or 0.0 for trial in trials])
    return next(trial for trial in trials if (trial.p99_ms or 0.0) == middle)


def _line(name: str, summary: Summary) -> str:
    p50, p99 = map(whole_ms, (summary.p50_ms, summary.p99_ms))
    return f"{name}: p50 {p50} ms, p99 {p99} ms, {summary.outcomes}{' (cut short)' if summary.cut_short else ''}"
