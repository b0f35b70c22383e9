"""What a lost replica costs: kill -9 each one in turn while requests run.

    python -m loadtest.chaos [--rounds 3] [--output results.json]

For each stage: seconds until /ready is 200 again, seconds until the first good answer, the slowest answer to a request that
was under way, and requests that failed. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from loadtest.local_service import LocalService, local_service, wait_until_ready
from loadtest.machine import describe_machine
from loadtest.photos import photos_from

DEPLOYMENTS = ("ImageLoader", "Detector", "Polygonizer", "Ingress")
CALLERS = 2
SETTLE_S = 0.05
"""Readiness is asked this long after the kill, seconds: before that the kernel may not have ended the process."""
REST_S = 4.0
"""Between two kills: the replacement is up and Ray's router knows it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One kill.

    Args:
        deployment: whose replica died.
        ready_s: seconds until /ready was 200 again.
        first_answer_s: seconds until the first request was answered with 200.
        failed: requests that got another status, or none.
        slowest_s: longest answer among those sent before the service was ready again.
    """

    deployment: str
    ready_s: float
    first_answer_s: float
    failed: int
    slowest_s: float


class Callers:
    """A few closed-loop clients; `answers` holds (sent, answered, status), time.monotonic() seconds."""

    def __init__(self, url: str, count: int) -> None:
        self.answers: list[tuple[float, float, int]] = []
        self._url = f"{url}/score"
        self._body = {"input_data": {"columns": ["image"], "data": [base64.b64encode(photos_from(None, 1)[0]).decode()]}}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            sent = time.monotonic()
            try:
                status = requests.post(self._url, json=self._body, timeout=60).status_code
            except requests.RequestException:
                status = 0
            self.answers.append((sent, time.monotonic(), status))


def lose_replica(service: LocalService, callers: Callers, deployment: str) -> Loss:
    """Kill one replica with SIGKILL and watch the service come back."""
    killed = time.monotonic()
    os.kill(service.replica_pids(deployment)[0], signal.SIGKILL)
    time.sleep(SETTLE_S)
    wait_until_ready(service)
    ready_at = time.monotonic()
    _until(lambda: any(sent > killed and status == 200 for sent, _, status in callers.answers), 60)
    time.sleep(REST_S)
    after = [answer for answer in callers.answers if answer[1] > killed]
    first = min(done for sent, done, status in after if status == 200 and sent > killed)
    under_way = [done - sent for sent, done, _ in after if sent < ready_at]
    failed = sum(status != 200 for _, _, status in after)
    return Loss(deployment, ready_at - killed, first - killed, failed, max(under_way))


def _until(met: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not met() and time.monotonic() < deadline:
        time.sleep(0.01)


def summarise(losses: list[Loss]) -> list[dict[str, float | str]]:
    """Median and worst of each deployment's kills."""
    rows: list[dict[str, float | str]] = []
    for deployment in DEPLOYMENTS:
        own = [loss for loss in losses if loss.deployment == deployment]
        rows.append(
            {
                "deployment": deployment,
                "ready_s": statistics.median(loss.ready_s for loss in own),
                "worst_ready_s": max(loss.ready_s for loss in own),
                "first_answer_s": statistics.median(loss.first_answer_s for loss in own),
                "slowest_s": max(loss.slowest_s for loss in own),
                "failed": sum(loss.failed for loss in own),
            }
        )
    return rows


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    losses = []
    with local_service() as service, Callers(service.url, CALLERS) as callers:
        time.sleep(REST_S)
        for _ in range(args.rounds):
            for deployment in DEPLOYMENTS:
                losses.append(lose_replica(service, callers, deployment))
                print(losses[-1], file=sys.stderr)
    rows = summarise(losses)
    print(
        f"{'killed':12} {'ready again s':>14} {'worst':>6} {'first answer s':>15} {'slowest answer s':>17} {'failed requests':>16}"
    )
    for row in rows:
        print(
            f"{row['deployment']:12} {row['ready_s']:>14.2f} {row['worst_ready_s']:>6.2f} {row['first_answer_s']:>15.2f} "
            f"{row['slowest_s']:>17.2f} {row['failed']:>16}"
        )
    line = json.dumps({"machine": describe_machine(), "rounds": args.rounds, "callers": CALLERS, "losses": rows})
    if args.output:
        args.output.write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
