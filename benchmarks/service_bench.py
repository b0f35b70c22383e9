"""How fast the whole service is, beside its ceiling: the engine alone in a loop on the same cores.

    python -m benchmarks.service_bench [--images folder] [--rounds 3] [--output results.json]

Closed loop: each of C clients sends its next request when the last is answered. Ceiling and service take turns, round by
round; medians over the rounds are shown. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import requests

from loadtest.engine_alone import measure_engine
from loadtest.local_service import local_service
from loadtest.machine import describe_machine
from loadtest.photos import photos_from
from pipeline.inference.engine import EngineOptions, load_engine
from serve_app.settings import EMBEDDED_MODEL, Settings

REQUEST_IMAGES = (1, 8, 32)
CONCURRENCY = (1, 16)


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting's result.

    Args:
        images_per_request, clients: the setting.
        images_per_s: images answered with 200 per second.
        p50_ms, p99_ms: latency of whole requests; None when none was answered.
        errors: requests with another status, by status.
    """

    images_per_request: int
    clients: int
    images_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]


def measure_service(url: str, photos: Sequence[bytes], images: int, clients: int, seconds: float) -> Measured:
    """Closed loop against a running service for `seconds`."""
    texts = [base64.b64encode(photo).decode() for photo in photos]
    bodies = [
        orjson.dumps({"input_data": {"columns": ["image"], "data": [texts[(start + k) % len(texts)] for k in range(images)]}})
        for start in range(len(texts))
    ]
    began = time.perf_counter()

    def client(first: int) -> list[tuple[int, float]]:
        answers: list[tuple[int, float]] = []
        with requests.Session() as session:
            for number in itertools.count(first):
                sent = time.perf_counter()
                if sent - began > seconds:
                    return answers
                status = session.post(
                    f"{url}/score", data=bodies[number % len(bodies)], headers={"content-type": "application/json"}, timeout=120
                ).status_code
                answers.append((status, (time.perf_counter() - sent) * 1e3))
        return answers

    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for answers in pool.map(client, range(clients)) for answer in answers]
    return _summary(answers, images, clients, time.perf_counter() - began)


def _summary(answers: list[tuple[int, float]], images: int, clients: int, took_s: float) -> Measured:
    good = [ms for status, ms in answers if status == 200]
    errors: dict[str, int] = {}
    for status, _ in answers:
        if status != 200:
            errors[str(status)] = errors.get(str(status), 0) + 1
    p50, p99 = (float(np.percentile(good, q)) for q in (50, 99)) if good else (None, None)
    return Measured(images, clients, len(good) * images / took_s, p50, p99, errors)


def _median(rounds: list[Measured]) -> Measured:
    """The round of median throughput, with every round's errors."""
    middle = sorted(rounds, key=lambda round_: round_.images_per_s)[len(rounds) // 2]
    errors: dict[str, int] = {}
    for round_ in rounds:
        for status, count in round_.errors.items():
            errors[status] = errors.get(status, 0) + count
    return Measured(middle.images_per_request, middle.clients, middle.images_per_s, middle.p50_ms, middle.p99_ms, errors)


def run(photos: Sequence[bytes], rounds: int, seconds: float) -> dict[str, object]:
    """Measure ceiling and service in turn."""
    detector = Settings().detector
    engine = load_engine(EMBEDDED_MODEL, EngineOptions(max_batch=detector.max_batch))
    ceilings: dict[int, list[float]] = {1: [], detector.max_batch: []}
    served: dict[tuple[int, int], list[Measured]] = {(i, c): [] for i in REQUEST_IMAGES for c in CONCURRENCY}
    with local_service() as service:
        measure_service(service.url, photos, 8, 4, 3.0)  # warm
        for round_ in range(rounds):
            for batch, rates in ceilings.items():
                rates.append(measure_engine(engine, photos, batch, seconds))
            for images, clients in served:
                served[images, clients].append(measure_service(service.url, photos, images, clients, seconds))
            print(f"round {round_ + 1} of {rounds} done", file=sys.stderr)
    return {
        "machine": describe_machine(),
        "engine": asdict(engine.info),
        "engine_alone_images_per_s": {str(batch): statistics.median(rates) for batch, rates in ceilings.items()},
        "service": [asdict(_median(measured)) for measured in served.values()],
    }


def as_table(results: dict) -> str:
    """The results for people."""
    ceiling = max(results["engine_alone_images_per_s"].values())
    lines = [
        f"engine alone: {', '.join(f'batch {b}: {r:.1f} images/s' for b, r in results['engine_alone_images_per_s'].items())}"
    ]
    lines.append(f"{'images/request':>14} {'clients':>8} {'images/s':>9} {'of ceiling':>10} {'p50 ms':>8} {'p99 ms':>8}  errors")
    for row in results["service"]:
        p50, p99 = ("-" if row[key] is None else f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms"))
        lines.append(
            f"{row['images_per_request']:>14} {row['clients']:>8} {row['images_per_s']:>9.1f} "
            f"{row['images_per_s'] / ceiling:>10.0%} {p50:>8} {p99:>8}  {row['errors'] or 'none'}"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photos (default: made 640x480 JPEGs)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each setting in each round")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    results = run(photos_from(args.images), args.rounds, args.seconds)
    print(as_table(results))
    line = json.dumps(results)
    if args.output:
        args.output.write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
