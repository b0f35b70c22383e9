"""A long run at a constant rate: errors, and memory by minute.

    python -m loadtest soak [--rate 8] [--minutes 15] [--images folder] [--output results.json]

Poisson arrivals; latency counts from the scheduled time. Starts the service from serve_config.yaml. Growth is the memory of the last
third over that of the first third (medians), without the first minute, and only of minutes with the usual number of replicas: one that
autoscaling adds is 100 MB, but no leak. Prints a line per minute, then one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.settings import DEPLOYMENTS
from jobs.command_line import count, positive, print_progress
from loadtest.load.openloop import Client, poisson_schedule, run_open_loop, run_single_stream, summarise, whole_ms
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK, request_bodies
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.machine import describe_machine, print_results
from loadtest.service.processes import private_memory_mb


@dataclass(frozen=True, slots=True)
class Soak:
    """One run.

    Args:
        rate_per_s: queries offered a second.
        outcomes: all queries by outcome.
        p50_ms, p99_ms, memory_mb: minute by minute; private memory of all processes of the service, MB.
        replicas: processes of each deployment, minute by minute.
        growth: of the memory after the first minute, a share; None below four such minutes.
    """

    rate_per_s: float
    outcomes: dict[str, int]
    p50_ms: list[float | None]
    p99_ms: list[float | None]
    memory_mb: list[float]
    replicas: list[dict[str, int]]
    growth: float | None


async def soak(service: LocalService, bodies: list[bytes], rate_per_s: float, minutes: int, minute_s: float = 60.0) -> Soak:
    """Offer a rate for so many minutes (of `minute_s` seconds)."""
    outcomes: Counter[str] = Counter()
    p50s, p99s, memory, replicas = [], [], [], []
    async with Client(service.url, bodies) as client:
        await run_single_stream(client, min(3.0, minute_s))
        for minute in range(minutes):
            schedule = poisson_schedule(rate_per_s, max(1, round(rate_per_s * minute_s)), seed=minute)
            summary = summarise(await run_open_loop(client, schedule, 30.0), None, rate_per_s)
            outcomes.update(summary.outcomes)
            p50s.append(summary.p50_ms)
            p99s.append(summary.p99_ms)
            memory.append(private_memory_mb(service.processes()))
            replicas.append({name: len(service.replica_pids(name)) for name in DEPLOYMENTS})
            p50, p99 = map(whole_ms, (summary.p50_ms, summary.p99_ms))
            line = f"minute {minute + 1}: p50 {p50} ms, p99 {p99} ms, {summary.outcomes}"
            print_progress(f"{line}, {memory[-1]:.0f} MB, {sum(replicas[-1].values())} replicas")
    return Soak(rate_per_s, dict(outcomes), p50s, p99s, memory, replicas, growth_of(memory[1:], replicas[1:]))


def growth_of(memory: list[float], replicas: list[dict[str, int]]) -> float | None:
    """Median of the last third over the median of the first third, less one, of the minutes with the usual replicas."""
    usual = max(replicas, key=replicas.count, default={})
    memory = [mb for mb, there in zip(memory, replicas, strict=True) if there == usual]
    third = len(memory) // 3
    return statistics.median(memory[-third:]) / statistics.median(memory[:third]) - 1 if third else None


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status: 1 if nothing was answered."""
    machine, bodies = describe_machine(), request_bodies(photos_from(args.images), 1)
    with local_service() as service:
        result = asyncio.run(soak(service, bodies, args.rate, args.minutes))
    growth = "-" if result.growth is None else f"{result.growth:+.1%}"
    print(f"{sum(result.outcomes.values())} queries: {result.outcomes}; memory after the first minute: {growth}")
    print_results({"machine": machine, "soak": asdict(result)}, args.output)
    return 0 if OK in result.outcomes else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m loadtest soak`."""
    parser.add_argument("--rate", type=positive, default=8.0, help="queries per second (default: %(default)s)")
    parser.add_argument("--minutes", type=count, default=15, help="length of the run (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of photos (default: generated 640x480 ones)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")
