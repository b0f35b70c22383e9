"""Measures the cost of a configuration change under load: a setting, the arguments, another model.

    python -m loadtest.update [--rate 3] [--seconds 45] [--output results.json]

    Poisson load ──▶ service ◀── `serve run` of the changed file, a few seconds later

For each change: seconds until it is in effect, and requests that failed, were late, and took longest. Prints a table and, last, one line
of JSON; exit status 1 if a request failed or was late.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from deployments.settings import DEPLOYMENTS, EMBEDDED_MODEL
from jobs.command_line import positive, print_progress
from loadtest.load.openloop import Client, percentile, poisson_schedule, run_open_loop, whole_ms
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK, request_bodies
from loadtest.service.local_service import REPOSITORY, LocalService, local_service, ray_environment
from loadtest.service.machine import describe_machine, print_results

DEADLINE_S = 30.0
LATE_S = 5.0
CHANGE_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the configuration.

    Args:
        edit: changes the application in place; takes a folder for files.
        done: whether it is in effect, from the service, its replicas before, and the answer of /info.
    """

    edit: Callable[[dict[str, Any], Path], None]
    done: Callable[[LocalService, dict[str, set[int]], dict[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Updated:
    """Result of one change under load: seconds until it was in effect (None: not within the run), and a summary of the requests."""

    change: str
    took_s: float | None
    asked: int
    failed: int
    late: int
    p50_ms: float | None
    slowest_ms: float | None


def _setting(application: dict[str, Any], _: Path) -> None:
    ingress = next(one for one in application["deployments"] if one["name"] == "Ingress")
    ingress["user_config"] = {"detector": {"score_threshold": 0.45}}


def _arguments(application: dict[str, Any], _: Path) -> None:
    application["args"]["detector"]["max_wait_ms"] = 3


def _model(application: dict[str, Any], folder: Path) -> None:
    copied = shutil.copy(REPOSITORY / f"pipeline/model/weights/{EMBEDDED_MODEL}.safetensors", folder / "another.safetensors")
    application["args"]["model"] = {"name": str(copied)}


def _all_new(service: LocalService, before: dict[str, set[int]], _: dict[str, Any]) -> bool:
    return all(pids and not pids & before[name] for name, pids in _replicas(service).items())


CHANGES = {
    "a setting (user_config)": Change(
        _setting, lambda _service, _before, info: info["limits"]["default_score_threshold"] == 0.45
    ),
    "args (rolling update)": Change(_arguments, _all_new),
    "another model": Change(_model, _all_new),
}


def _replicas(service: LocalService) -> dict[str, set[int]]:
    return {name: set(service.replica_pids(name)) for name in DEPLOYMENTS}


def update(service: LocalService, name: str, rate_per_s: float, seconds: float) -> Updated:
    """Load the service for some seconds and make one change meanwhile."""
    took: list[float] = []
    changing = threading.Thread(target=lambda: took.extend(_make(service, CHANGES[name], seconds - CHANGE_AFTER_S)))

    async def load() -> list[Any]:
        schedule = poisson_schedule(rate_per_s, round(rate_per_s * seconds), seed=1)
        async with Client(service.url, request_bodies(photos_from(None, 8), 1), timeout_s=DEADLINE_S + 10) as client:
            return await run_open_loop(client, schedule, DEADLINE_S + 10)

    changing.start()
    queries = asyncio.run(load())
    changing.join()
    good = [query.latency_ms for query in queries if query.outcome == OK]
    late = sum(ms > LATE_S * 1e3 for ms in good)
    slowest = max(good, default=None)
    return Updated(name, next(iter(took), None), len(queries), len(queries) - len(good), late, percentile(good, 50), slowest)


def _make(service: LocalService, change: Change, patience_s: float) -> list[float]:
    """Deploy the changed file as an operator does; returns the seconds until it was in effect, or nothing."""
    time.sleep(CHANGE_AFTER_S)
    before, path = _replicas(service), service.folder / "serve_config.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    change.edit(document["applications"][0], service.folder)
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    began = time.monotonic()
    _deploy(service, path)
    while time.monotonic() < began + patience_s:
        info = requests.get(f"{service.url}/info", timeout=10)
        if info.ok and change.done(service, before, info.json()):
            return [time.monotonic() - began]
        time.sleep(0.2)
    return []


def _deploy(service: LocalService, path: Path) -> None:
    env = os.environ | ray_environment() | {"RAY_ADDRESS": service.ray_address, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", str(path)]
    subprocess.run(command, env=env, check=True, capture_output=True)


def as_table(rows: list[Updated]) -> str:
    """The results as a table."""
    lines = [f"{'change':26}{'in effect after s':>18}{'asked':>7}{'failed':>8}{'late':>6}{'p50 ms':>8}{'slowest ms':>12}"]
    for row in rows:
        numbers = [whole_ms(ms) for ms in (row.p50_ms, row.slowest_ms)]
        took = f"{row.took_s:.1f}" if row.took_s is not None else "not yet"
        lines.append(f"{row.change:26}{took:>18}{row.asked:7}{row.failed:8}{row.late:6}{numbers[0]:>8}{numbers[1]:>12}")
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.update", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=positive, default=3.0, help="requests per second (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=45.0, help="length of the run for each change (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")
    args = parser.parse_args()
    rows = []
    with local_service() as service:
        for name in CHANGES:
            rows.append(update(service, name, args.rate, args.seconds))
            print_progress(rows[-1])
    facts = {"machine": describe_machine(), "late_s": LATE_S, "updates": [asdict(row) for row in rows]}
    print(as_table(rows))
    print_results(facts, args.output)
    return 1 if any(row.failed or row.late or row.took_s is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
