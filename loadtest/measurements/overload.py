"""Measures the service at twice its limit, and how long it takes to recover.

    python -m loadtest overload [--rate R] [--p99-ms 250] [--seconds 20] [--images folder] [--output results.json]

    the limit's rate ─▶ twice that rate ─▶ one query after the other until they are quick again

Each query has the bound as its deadline (x-request-timeout-seconds). Without --rate the limit
is searched first. Starts the service from serve_config.yaml and reads the memory of all its processes. Prints a table, then
one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.command_line import positive, print_progress
from loadtest.load.openloop import Client, Summary, poisson_schedule, run_open_loop, run_single_stream, summarise, whole_ms
from loadtest.load.photos import photos_from
from loadtest.load.scenarios import Setup, find_server_rate
from loadtest.load.traffic import OK, request_bodies
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.machine import describe_machine, print_results
from loadtest.service.processes import private_memory_mb

RECOVERED_IN_A_ROW = 3
GIVE_UP_S = 60.0
WARM_UP_S, BETWEEN_S, AFTER_S = 3.0, 2.0, 3.0
"""Seconds before the first rate, between the two rates, and before the last reading of the memory."""


@dataclass(frozen=True, slots=True)
class Overload:
    """One run.

    Args:
        limit_per_s: rate of the limit, queries a second.
        at_limit, at_twice: result of each rate.
        goodput_kept: goodput at twice the limit's rate over goodput at the limit; None if that was 0.
        recovered_s: from the end of the load until three queries in a row were answered within the bound; None: never.
        memory_mb: of all processes of the service before, at the end of the load, and after, MB of private memory.
    """

    limit_per_s: float
    at_limit: Summary
    at_twice: Summary
    goodput_kept: float | None
    recovered_s: float | None
    memory_mb: tuple[float, float, float]


async def overload(service: LocalService, bodies: list[bytes], setup: Setup, rate_per_s: float | None) -> Overload:
    """Load the service at the limit, at twice the limit, and wait for it to recover."""
    async with Client(service.url, bodies) as plain:
        await run_single_stream(plain, WARM_UP_S)
        limit = rate_per_s or (await find_server_rate(plain, setup))["rate_per_s"]
        if limit is None:
            raise SystemExit(f"no rate meets p99 {setup.p99_ms:g} ms, so there is no limit to double; give a --rate")
        headers = {"x-request-timeout-seconds": str(setup.p99_ms / 1e3)}
        async with Client(service.url, bodies, headers=headers) as client:
            before = private_memory_mb(service.processes())
            at_limit = await _offer(client, setup, limit, 1)
            await asyncio.sleep(BETWEEN_S)
            at_twice = await _offer(client, setup, 2 * limit, 2)
            loaded = private_memory_mb(service.processes())
            recovered_s = await _recovery(client, setup.p99_ms)
            await asyncio.sleep(AFTER_S)
    kept = (at_twice.goodput_per_s or 0.0) / at_limit.goodput_per_s if at_limit.goodput_per_s else None
    return Overload(limit, at_limit, at_twice, kept, recovered_s, (before, loaded, private_memory_mb(service.processes())))


async def _offer(client: Client, setup: Setup, rate_per_s: float, seed: int) -> Summary:
    schedule = poisson_schedule(rate_per_s, round(rate_per_s * setup.seconds), seed)
    summary = summarise(await run_open_loop(client, schedule, 30.0), setup.p99_ms, rate_per_s)
    print_progress(
        f"{rate_per_s:.1f}/s offered: {summary.goodput_per_s or 0:.1f}/s within {setup.p99_ms:g} ms, {summary.outcomes}"
    )
    return summary


async def _recovery(client: Client, bound_ms: float) -> float | None:
    began, quick = time.perf_counter(), 0
    while time.perf_counter() - began < GIVE_UP_S:
        query = await client.ask(0, time.perf_counter(), 0.0)
        quick = quick + 1 if query.outcome == OK and query.latency_ms <= bound_ms else 0
        if quick == RECOVERED_IN_A_ROW:
            return time.perf_counter() - began
    return None


def as_table(result: Overload) -> str:
    """The result as a table."""
    rows = [
        f"{'offered/s':>9} {'within the bound/s':>18} {'refused':>8} {'too late':>8} {'failed':>8} {'p99 ms of answers':>17} "
        f"{'p99 ms of refusals':>18}"
    ]
    for summary in (result.at_limit, result.at_twice):
        refused = sum(count for name, count in summary.outcomes.items() if name.startswith("refused"))
        late = summary.outcomes.get("status 408", 0)
        failed = summary.queries - summary.ok - refused - late
        answered, turned_away = map(whole_ms, (summary.p99_ms, summary.refused_p99_ms))
        rows.append(
            f"{summary.offered_per_s:9.1f} {summary.goodput_per_s or 0:18.1f} {refused:8} {late:8} {failed:8} {answered:>17} "
            f"{turned_away:>18}"
        )
    recovered = "never" if result.recovered_s is None else f"{result.recovered_s:.1f} s"
    rows.append(
        f"goodput kept: {'-' if result.goodput_kept is None else f'{result.goodput_kept:.0%}'}; normal again after {recovered}; "
        f"memory {' -> '.join(f'{mb:.0f}' for mb in result.memory_mb)} MB"
    )
    return "\n".join(rows)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status: 1 if nothing was answered in time at the limit."""
    machine, bodies = describe_machine(), request_bodies(photos_from(args.images), 1)
    with local_service() as service:
        result = asyncio.run(overload(service, bodies, Setup(p99_ms=args.p99_ms, seconds=args.seconds), args.rate))
    print(as_table(result))
    print_results({"machine": machine, "overload": asdict(result)}, args.output)
    return 0 if result.goodput_kept is not None else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m loadtest overload`."""
    parser.add_argument("--rate", type=positive, help="the limit, queries/s (default: searched)")
    parser.add_argument("--p99-ms", type=positive, default=250.0, help="latency bound (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=20.0, help="seconds at each rate (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of photos (default: generated 640x480 ones)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")
