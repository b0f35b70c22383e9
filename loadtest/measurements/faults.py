"""Random faults under load: `python -m loadtest.chaos --minutes 10`.

    three nodes, Poisson load ──┬─▶ every query's outcome and latency ─▶ table by fault
    every 10 s a random fault ──┘

A fault is SIGKILL, or SIGSTOP for some seconds (a process that exists but does not answer), to a random replica of a stage, HAProxy,
the controller, or the raylet of one of the nodes. A node whose raylet was killed or stopped is replaced, as an operator would do.
The detectors are simulated: the faults are about everything around them.

As root in a network namespace of its own (`unshare --net`), each node has an HTTP proxy and a load balancer is before them, as on a
cluster. Otherwise the only proxy is on the head, and nothing is answered while it is down.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from deployments.settings import DEPLOYMENTS
from jobs.command_line import print_progress
from loadtest.load.openloop import Client, Query, percentile, poisson_schedule, run_closed_loop, run_open_loop, whole_ms
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK, request_bodies
from loadtest.service.local_cluster import Node, NotReady
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.node_network import may_make_networks
from loadtest.service.processes import title_of

NODES = 3
KILL, STOP = "kill -9", "SIGSTOP"
HAPROXY, CONTROLLER, RAYLET = "HAProxy", "controller", "raylet of a node"
TARGETS = (*DEPLOYMENTS, HAPROXY, CONTROLLER, RAYLET)
LOSES_REQUESTS = ("Ingress", HAPROXY, RAYLET)
"""Targets whose requests are lost when they die: an Ingress, the proxy, a node with an Ingress."""
STOPPED_S = 6.0
"""Seconds until a stopped process continues. A raylet does not continue: Ray declares its node dead meanwhile (ray.env), and it is
replaced."""
NODE_KILLED_AFTER_S, NODE_ENDS_S = 2 * STOPPED_S, 1.0
"""Seconds after a fault of a raylet until all processes of its node are killed, with the requests in its proxy, and until they have
ended."""
DEADLINE_S = 30.0
HUNG_S = DEADLINE_S + 6.0
"""A query without an answer after this time counts as hung, seconds: beyond the deadline and HAProxy's timeout (ray.env)."""
CLOCKS_DIFFER_S = 0.05
"""The times of faults begin a little earlier than those of queries: with the thread that causes them."""
WARM_UP_CLIENTS, WARM_UP_S = 8, 8.0
STEP_MS = {"base_ms": 20.0, "per_image_ms": 10.0, "instances": 2}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: time since the beginning, action and target."""

    at_s: float
    action: str
    target: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.action} {self.target}"


@dataclass(slots=True)
class FaultInjector:
    """Causes faults in a running service until it is stopped.

    Args:
        service: on a cluster.
        every_s: seconds from one fault to the next.
        seed: of the random choice.
    """

    service: LocalService
    every_s: float
    seed: int
    faults: list[Fault] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, clock: Any) -> None:
        """Cause faults; blocks. `clock()` returns the seconds since the beginning of the load."""
        chance = random.Random(self.seed)
        while not self.ended.wait(self.every_s):
            action, target = chance.choice((KILL, STOP)), chance.choice(TARGETS)
            node = chance.choice(self.service.nodes)
            processes = self._processes_of(target, node)
            if not processes:  # its replacement is not there yet
                continue
            self.faults.append(Fault(clock(), action, target))
            print_progress(f"{self.faults[-1].at_s:6.1f} s: {self.faults[-1].name}")
            self._inject(chance.choice(processes), action, node if target == RAYLET else None)

    def _processes_of(self, target: str, node: Node) -> list[psutil.Process]:
        processes = node.processes() if target == RAYLET else self.service.processes()
        signs = {HAPROXY: "haproxy -", CONTROLLER: "ray::ServeController", RAYLET: "raylet/raylet"}
        sign = signs.get(target, f":{target}")
        return [process for process in processes if sign in title_of(process)]

    def _inject(self, process: psutil.Process, action: str, node: Node | None) -> None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL if action == KILL else signal.SIGSTOP)
        if node is not None:
            self.ended.wait(NODE_KILLED_AFTER_S)
            node.kill()
            self._replace(node)
        elif action == STOP:
            self.ended.wait(STOPPED_S)
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _replace(self, node: Node) -> None:
        """Start another node, with retries: a raylet gives its agent 15 s to start, which may not suffice on a busy machine."""
        while not self.ended.is_set():
            try:
                self.service.replace(node)
                return
            except NotReady as error:
                print_progress(f"a node did not start: {str(error).splitlines()[-1]}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Summary of the queries.

    Args:
        rate_per_s: offered.
        queries, failed, hung: counts; hung ones were answered after HUNG_S, or never.
        unexplained: failures of queries that were not in a killed or stopped Ingress, proxy or node.
        p50_ms, p99_ms: latency of correct answers.
        faults: all of them.
        failures: (sent, answered or given up, outcome, message) of every query that failed, seconds from the beginning.
        rows: by fault: how often, queries that ended after it and before the next one, failures by outcome, slowest answer (s) or None.
    """

    rate_per_s: float
    queries: int
    failed: int
    hung: int
    unexplained: int
    p50_ms: float | None
    p99_ms: float | None
    faults: list[Fault]
    failures: list[tuple[float, float, str, str]]
    rows: list[dict[str, Any]]


def summarise(queries: Sequence[Query], faults: Sequence[Fault], rate_per_s: float) -> Outcome:
    """Each query is counted with the last fault before its end."""
    by_fault: dict[str, list[Query]] = {name: [] for name in ("none yet", *dict.fromkeys(fault.name for fault in faults))}
    for query in queries:
        before = [fault for fault in faults if fault.at_s <= query.done_s]
        by_fault[before[-1].name if before else "none yet"].append(query)
    times = Counter(fault.name for fault in faults)
    good = [query.latency_ms for query in queries if query.outcome == OK]
    failed = [query for query in queries if query.outcome != OK]
    rows = [
        {
            "fault": name,
            "times": times[name],
            "queries": len(mine),
            "failed": dict(Counter(query.outcome for query in mine if query.outcome != OK)),
            "slowest_s": max(query.latency_ms for query in mine) / 1e3 if mine else None,
        }
        for name, mine in by_fault.items()
    ]
    return Outcome(
        rate_per_s,
        len(queries),
        len(failed),
        sum(query.latency_ms > HUNG_S * 1e3 for query in queries),
        sum(not _explained(query, faults) for query in failed),
        percentile(good, 50),
        percentile(good, 99),
        list(faults),
        [(query.sent_s, query.done_s, query.outcome, query.message) for query in failed],
        rows,
    )


def _explained(query: Query, faults: Sequence[Fault]) -> bool:
    """Whether a target in LOSES_REQUESTS was killed or stopped while the query was in flight, or shortly before."""
    earliest_s, latest_s = query.sent_s - NODE_KILLED_AFTER_S - NODE_ENDS_S, query.done_s + CLOCKS_DIFFER_S
    return any(fault.target in LOSES_REQUESTS and earliest_s <= fault.at_s <= latest_s for fault in faults)


def spread_out(document: dict[str, Any]) -> None:
    """Change a configuration: simulated detectors, and two replicas of every deployment on different nodes.

    With deploy/rayservice.yaml a GPU pod has one Detector, and a CPU pod no room for all replicas of a stage.
    """
    (application,) = document["applications"]
    application["args"]["detector"] |= {"engine": "simulated", "simulated": STEP_MS}
    for deployment in application["deployments"]:
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1}


async def load(service: LocalService, minutes: float, every_s: float, rate_per_s: float | None, seed: int) -> Outcome:
    """Offer a rate, by default half the measured limit, while the faults happen."""
    loop = asyncio.get_running_loop()
    bodies = request_bodies(photos_from(None), 1)
    async with Client(service.url, bodies, timeout_s=HUNG_S + 5) as client:
        rate_per_s = rate_per_s or await limit_per_s(client) / 2
        injector = FaultInjector(service, every_s, seed)
        began = loop.time()
        injecting = asyncio.create_task(asyncio.to_thread(injector.run, lambda: loop.time() - began))
        try:
            schedule = poisson_schedule(rate_per_s, round(rate_per_s * minutes * 60), seed)
            queries = await run_open_loop(client, schedule, HUNG_S + 5)
        finally:
            injector.ended.set()
            await injecting
    return summarise(queries, injector.faults, rate_per_s)


async def limit_per_s(client: Client) -> float:
    """Correct answers per second with a few closed-loop clients."""
    began = asyncio.get_running_loop().time()
    queries: list[Query] = []
    await asyncio.gather(*(run_closed_loop(client, queries, began, WARM_UP_S) for _ in range(WARM_UP_CLIENTS)))
    return sum(query.outcome == OK for query in queries) / WARM_UP_S


def measure(minutes: float, every_s: float, rate_per_s: float | None, seed: int) -> Outcome:
    """Start three nodes, cause faults, and summarise."""
    own_networks = may_make_networks()
    with local_service(change=spread_out, nodes=NODES, namespaces=own_networks, balanced=own_networks) as service:
        return asyncio.run(load(service, minutes, every_s, rate_per_s, seed))


def as_table(outcome: Outcome) -> str:
    """The result as a table."""
    lines = [f"{'fault':30}{'times':>6}{'queries':>9}{'slowest s':>11}  failed"]
    for row in outcome.rows:
        failed = ", ".join(f"{name} {count}" for name, count in row["failed"].items()) or "none"
        slowest = "-" if row["slowest_s"] is None else f"{row['slowest_s']:.1f}"
        lines.append(f"{row['fault']:30}{row['times']:6}{row['queries']:9}{slowest:>11}  {failed}")
    p50, p99 = map(whole_ms, (outcome.p50_ms, outcome.p99_ms))
    lines.append(
        f"{outcome.queries} queries at {outcome.rate_per_s:.1f}/s: {outcome.failed} failed, {outcome.unexplained} of them "
        f"held by nothing that was killed or stopped; {outcome.hung} hung beyond {HUNG_S:g} s; p50 {p50} ms, p99 {p99} ms"
    )
    return "\n".join(lines)
