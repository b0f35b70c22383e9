"""Measures the images/s of the whole service, and of the engine alone on the same cores as its upper bound.

    python -m benchmarks.service_bench [--images folder] [--rounds 3] [--output results.json]

Closed loop: each client sends its next request when the last is answered. Ceiling and service take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measure import add_arguments, as_number, as_range, finish, spread, spread_if_any, table, turns
from deployments.settings import EMBEDDED_MODEL, Settings
from loadtest.load.openloop import Client, Summary, summarise
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK, request_bodies
from loadtest.measurements.spike import run_clients
from loadtest.planning.engine_alone import measure_engine
from loadtest.service.local_service import local_service
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions

REQUEST_IMAGES = (1, 8, 32)
CLIENTS = (1, 16)


async def measure_service(url: str, photos: Sequence[bytes], images: int, clients: int, seconds: float) -> Summary:
    """Closed loop against a running service."""
    async with Client(url, request_bodies(photos, images), images, timeout_s=120) as client:
        return summarise(await run_clients(client, [(clients, seconds)]), None, images_per_query=images)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure ceiling and service in turn, print the table."""
    photos, detector = photos_from(args.images), Settings().detector
    engine = load_engine(EMBEDDED_MODEL, EngineOptions(max_batch=detector.max_batch))
    ceilings: dict[str, list[float]] = {f"engine, batch {batch}": [] for batch in (1, detector.max_batch)}
    loads = {f"{images}, {clients}": (images, clients) for images in REQUEST_IMAGES for clients in CLIENTS}
    served: dict[str, list[Summary]] = {name: [] for name in loads}
    with local_service() as service:
        asyncio.run(measure_service(service.url, photos, 8, 4, 3.0))  # warm
        for _, name in turns([*ceilings, *loads], args.rounds):
            if name in loads:
                served[name].append(asyncio.run(measure_service(service.url, photos, *loads[name], args.seconds)))
            else:
                ceilings[name].append(measure_engine(engine, photos, int(name.split()[-1]), args.seconds))
    print("; ".join(f"{name}: {as_range(spread(rates))} images/s" for name, rates in ceilings.items()))
    ceiling = max(spread(rates).median for rates in ceilings.values())
    print(as_table(served, ceiling))
    return {
        "engine": asdict(engine.info),
        "engine_alone_images_per_s": {name: spread(rates) for name, rates in ceilings.items()},
        "service": {name: [asdict(summary) for summary in rounds] for name, rounds in served.items()},
    }


def as_table(served: dict[str, list[Summary]], ceiling: float) -> str:
    """The service's rounds for people."""

    def over_rounds(rounds: list[Summary], name: str) -> list[float]:
        return [value for one in rounds if (value := getattr(one, name)) is not None]

    rows = []
    for name, rounds in served.items():
        rate = spread([one.images_per_s or 0.0 for one in rounds])
        p50, p99 = (spread_if_any(over_rounds(rounds, key)) for key in ("p50_ms", "p99_ms"))
        failed = ", ".join(f"{what} {n}" for one in rounds for what, n in one.outcomes.items() if what != OK) or "none"
        latencies = [as_number(found.median if found else None) for found in (p50, p99)]
        rows.append([name, as_range(rate), f"{rate.median / ceiling:.0%}", *latencies, failed])
    return table(["images per request, clients", "images/s", "of ceiling", "p50 ms", "p99 ms", "errors"], rows)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_bench", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, seconds=6.0)
    args = parser.parse_args()
    finish("service_bench", run(args), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
