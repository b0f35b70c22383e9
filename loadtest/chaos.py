"""Measures the cost of a lost replica or node: kills each in turn with SIGKILL while requests run, or causes random faults.

    python -m loadtest.chaos [--rounds 3] [--nodes] [--output results.json]
    python -m loadtest.chaos --minutes 10 [--every 10] [--rate R] [--seed 0]        (loadtest/measurements/faults.py)

For each deployment: seconds until /ready is 200 again, seconds until the first good answer, the slowest answer to a request that
was in flight, and requests that failed. With `--nodes` a node of two, each with replicas of every stage, on this machine.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from deployments.settings import STAGES
from jobs.command_line import count, positive, print_progress
from loadtest.load.photos import photos_from
from loadtest.measurements import faults
from loadtest.service.local_service import LocalService, local_service, wait_until_ready
from loadtest.service.machine import describe_machine, print_results

A_NODE = "a node of two"
CALLERS = 2
SETTLE_S = 0.05
"""Seconds after the kill before /ready is polled: until then the process may still exist."""
REST_S = 4.0
"""Seconds between two kills, until the replacement is up and known to Ray's router."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One kill.

    Args:
        killed: the deployment whose replica died, or `A_NODE`.
        ready_s: seconds until /ready was 200 again.
        first_answer_s: seconds until the first request was answered with 200.
        failed: requests that got another status, or none.
        slowest_s: longest response time of requests sent before the service was ready again.
    """

    killed: str
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
    pid = service.replica_pids(deployment)[0]
    return _lose(deployment, service, callers, lambda: os.kill(pid, signal.SIGKILL))


def lose_node(service: LocalService, callers: Callers) -> Loss:
    """Kill every process of one node with SIGKILL and watch the service come back."""
    return _lose(A_NODE, service, callers, service.nodes[0].kill)


def _lose(what: str, service: LocalService, callers: Callers, kill: Callable[[], object]) -> Loss:
    killed = time.monotonic()
    kill()
    time.sleep(SETTLE_S)
    wait_until_ready(service)
    ready_at = time.monotonic()
    _until(lambda: any(sent > killed and status == 200 for sent, _, status in callers.answers), 60)
    time.sleep(REST_S)
    after = [answer for answer in callers.answers if answer[1] > killed]
    first = min(done for sent, done, status in after if status == 200 and sent > killed)
    in_flight = [done - sent for sent, done, _ in after if sent < ready_at]
    failed = sum(status != 200 for _, _, status in after)
    return Loss(what, ready_at - killed, first - killed, failed, max(in_flight))


def _until(met: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not met() and time.monotonic() < deadline:
        time.sleep(0.01)


def summarise(losses: list[Loss]) -> list[dict[str, float | str]]:
    """Median and worst of the kills of each kind, in the order in which the kinds came."""
    rows: list[dict[str, float | str]] = []
    for killed in dict.fromkeys(loss.killed for loss in losses):
        own = [loss for loss in losses if loss.killed == killed]
        rows.append(
            {
                "killed": killed,
                "ready_s": statistics.median(loss.ready_s for loss in own),
                "worst_ready_s": max(loss.ready_s for loss in own),
                "first_answer_s": statistics.median(loss.first_answer_s for loss in own),
                "slowest_s": max(loss.slowest_s for loss in own),
                "failed": sum(loss.failed for loss in own),
            }
        )
    return rows


def _lose_replicas(rounds: int) -> Iterator[Loss]:
    with local_service() as service, Callers(service.url, CALLERS) as callers:
        time.sleep(REST_S)
        for _ in range(rounds):
            for deployment in (*STAGES, "Ingress"):
                yield lose_replica(service, callers, deployment)


def _lose_nodes(rounds: int) -> Iterator[Loss]:
    """Lose a node, each time on a new cluster, because afterwards all replicas are on the remaining node."""
    for _ in range(rounds):
        with local_service(change=two_detectors, nodes=2) as service, Callers(service.url, CALLERS) as callers:
            time.sleep(REST_S)
            yield lose_node(service, callers)


def two_detectors(document: dict[str, Any]) -> None:
    """Change a configuration so that each of two nodes gets a replica of every stage."""
    for deployment in document["applications"][0]["deployments"]:
        deployment["num_replicas"] = 2


def main() -> int:
    """The command line; returns the exit status: 1 if random faults caused an unexplained failure, or a hung query."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--nodes", action="store_true", help="kill one of two nodes instead of replicas")
    parser.add_argument(
        "--minutes", type=positive, help="random faults on three nodes for this time, instead of each kill in turn"
    )
    parser.add_argument("--every", type=positive, default=10.0, help="seconds between random faults (default: %(default)s)")
    parser.add_argument(
        "--rate", type=positive, help="queries per second under random faults (default: half of what a few clients get)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    args = parser.parse_args()
    if args.minutes:
        outcome = faults.measure(args.minutes, args.every, args.rate, args.seed)
        _print(faults.as_table(outcome), {"random_faults": asdict(outcome)}, args.output)
        return 1 if outcome.hung or outcome.unexplained else 0
    losses = []
    for loss in _lose_nodes(args.rounds) if args.nodes else _lose_replicas(args.rounds):
        losses.append(loss)
        print_progress(loss)
    rows = summarise(losses)
    head = f"{'killed':14} {'ready again s':>14} {'worst':>6} {'first answer s':>15} {'slowest answer s':>17} {'failed requests':>16}"
    lines = [
        f"{row['killed']:14} {row['ready_s']:>14.2f} {row['worst_ready_s']:>6.2f} {row['first_answer_s']:>15.2f} "
        f"{row['slowest_s']:>17.2f} {row['failed']:>16}"
        for row in rows
    ]
    _print("\n".join([head, *lines]), {"rounds": args.rounds, "callers": CALLERS, "losses": rows}, args.output)
    return 0


def _print(table: str, facts: dict[str, Any], output: Path | None) -> None:
    print(table)
    print_results({"machine": describe_machine()} | facts, output)


if __name__ == "__main__":
    sys.exit(main())
