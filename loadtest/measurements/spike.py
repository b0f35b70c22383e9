"""A spike from one client to ten, with simulated detectors: measures autoscaling, and the time until the latency bound is met again.

    python -m loadtest spike [--clients 1 10] [--seconds 20 70 40] [--p99-ms 500] [--output folder]

Closed-loop clients. Simulated detectors sleep as long as an accelerator would take; every stage scales by
itself, from one replica. Prints a table, then one line of JSON; --output also writes a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.command_line import count, positive, print_progress
from loadtest.load.openloop import Client, Query, percentile, run_closed_loop, run_single_stream, whole_ms
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK, request_bodies
from loadtest.measurements import plots
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.machine import describe_machine
from loadtest.service.watch import Sample, Watch

STEP_MS = (40.0, 20.0)
"""Step of the simulated detector: 60 ms for one image, so that ten clients need several detectors and two CPUs suffice for the rest."""
MAX_REPLICAS = 4
WINDOW_S = 2.0
PHASES = ("before", "spike", "after")


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the run.

    Args:
        name, clients, seconds: of the phase.
        per_s: answers a second.
        p50_ms, p99_ms: of its answers.
        failed: queries that were not answered correctly.
        most_replicas: of each stage.
    """

    name: str
    clients: int
    seconds: float
    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    failed: int
    most_replicas: dict[str, int]


@dataclass(frozen=True, slots=True)
class Spike:
    """A run.

    Args:
        bound_ms: the latency bound.
        phases: before, spike, after.
        recovered_s: time from the beginning of the spike until p99 of every later window met the bound; None: never.
        queries: (sent, answered, outcome), seconds from the beginning.
        samples: what the service used.
    """

    bound_ms: float
    phases: list[Phase]
    recovered_s: float | None
    queries: list[tuple[float, float, str]]
    samples: list[Sample]


def scale_by_itself(document: dict[str, Any]) -> None:
    """Change a configuration: simulated detectors; every stage starts with one replica and autoscales."""
    (application,) = document["applications"]
    base_ms, per_image_ms = STEP_MS
    arguments = application["args"]
    arguments["detector"] |= {
        "engine": "simulated",
        "max_batch": 2,
        "simulated": {"base_ms": base_ms, "per_image_ms": per_image_ms, "instances": 8},
    }
    arguments["ingress"]["groups"] = {"max_images": 1, "max_in_flight": 64}  # replicas are counted by the calls in flight
    for deployment in application["deployments"]:
        if deployment["name"] != "Ingress":
            deployment.pop("num_replicas", None)
            deployment["autoscaling_config"] = {
                "min_replicas": 1,
                "max_replicas": MAX_REPLICAS,
                "target_ongoing_requests": 2,
                "upscale_delay_s": 2,
                "downscale_delay_s": 10,
                "metrics_interval_s": 1,
                "look_back_period_s": 4,
            }
            deployment["ray_actor_options"] = {"num_cpus": 0.1}


async def run_clients(client: Client, phases: Sequence[tuple[int, float]]) -> list[Query]:
    """Closed-loop clients, phase after phase: (how many, for how many seconds)."""
    began = time.perf_counter()
    queries: list[Query] = []
    ends_s = 0.0
    for clients, seconds in phases:
        ends_s += seconds
        await asyncio.gather(*(run_closed_loop(client, queries, began, ends_s) for _ in range(clients)))
    return queries


def recovery_s(queries: Sequence[Query], begin_s: float, end_s: float, bound_ms: float) -> float | None:
    """Seconds after `begin_s` from which on every window of WINDOW_S held the bound, until `end_s`."""
    recovered_s, at_s = 0.0, begin_s
    while at_s + WINDOW_S <= end_s:
        latencies = [query.latency_ms for query in queries if at_s <= query.done_s < at_s + WINDOW_S and query.outcome == OK]
        worst = percentile(latencies, 99)
        if worst is None or worst > bound_ms:
            recovered_s = at_s + WINDOW_S - begin_s
        at_s += WINDOW_S
    return None if recovered_s + WINDOW_S > end_s - begin_s else recovered_s


def summarise_spike(queries: Sequence[Query], samples: list[Sample], plan: Sequence[tuple[int, float]], bound_ms: float) -> Spike:
    """Summarise the phases (clients, seconds), in the order of PHASES."""
    phases, begin_s = [], 0.0
    for name, (clients, seconds) in zip(PHASES, plan, strict=True):
        end_s = begin_s + seconds
        mine = [query for query in queries if begin_s <= query.scheduled_s < end_s]
        latencies = [query.latency_ms for query in mine if query.outcome == OK]
        most: dict[str, int] = {}
        for sample in samples:
            if begin_s <= sample.at_s < end_s:
                most |= {stage: max(count, most.get(stage, 0)) for stage, count in sample.replicas.items()}
        phases.append(
            Phase(
                name,
                clients,
                seconds,
                len(latencies) / seconds,
                percentile(latencies, 50),
                percentile(latencies, 99),
                len(mine) - len(latencies),
                most,
            )
        )
        begin_s = end_s
    first_s = plan[0][1]
    recovered = recovery_s(queries, first_s, first_s + plan[1][1], bound_ms)
    return Spike(bound_ms, phases, recovered, [(query.sent_s, query.done_s, query.outcome) for query in queries], samples)


def as_table(result: Spike) -> str:
    """The result as a table."""
    rows = [f"{'':8}{'clients':>8}{'answers/s':>11}{'p50 ms':>8}{'p99 ms':>8}{'failed':>8}  most replicas"]
    for phase in result.phases:
        p50, p99 = map(whole_ms, (phase.p50_ms, phase.p99_ms))
        replicas = ", ".join(f"{stage} {count}" for stage, count in phase.most_replicas.items())
        rows.append(f"{phase.name:8}{phase.clients:8}{phase.per_s:11.1f}{p50:>8}{p99:>8}{phase.failed:8}  {replicas}")
    recovered = "never within the spike" if result.recovered_s is None else f"{result.recovered_s:.0f} s after the spike began"
    rows.append(f"p99 under {result.bound_ms:g} ms again: {recovered}")
    return "\n".join(rows)


def as_png(result: Spike) -> bytes:
    """Latency, replicas and CPU over time."""
    figure = plots.figure(10, 11)
    latency, replicas, cores = figure.subplots(3, 1, sharex=True)
    answered = [(done, (done - sent) * 1e3) for sent, done, outcome in result.queries if outcome == OK]
    if answered:
        latency.plot(*zip(*answered, strict=True), ".", markersize=3, label="answers")
    latency.axhline(result.bound_ms, color="grey", linestyle="--", label=f"bound {result.bound_ms:g} ms")
    at_s = 0.0
    for phase in result.phases:
        latency.annotate(f"{phase.clients} client(s)", (at_s, 0.97), xycoords=("data", "axes fraction"), va="top")
        at_s += phase.seconds
        for axes in (latency, replicas, cores):
            axes.axvline(at_s, color="lightgrey")
    latency.set(title="Latency", ylabel="ms", ylim=(0, None))
    latency.legend(loc="upper right")
    samples = [asdict(sample) for sample in result.samples]
    plots.draw_replicas(replicas, samples)
    plots.draw_cores(cores, samples)
    return plots.as_png(figure)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0, or 1 if the bound was not met again."""
    few, many = args.clients
    plan = [(clients, seconds) for clients, seconds in zip((few, many, few), args.seconds, strict=True)]
    bodies = request_bodies(photos_from(args.images), 1)
    machine = describe_machine()

    async def load(service: LocalService) -> tuple[list[Query], list[Sample]]:
        async with Client(service.url, bodies) as client:
            await run_single_stream(client, 2.0)
            with Watch(service.processes) as watch:
                return await run_clients(client, plan), watch.samples

    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    print_progress(f"measuring for {sum(args.seconds):.0f} s")
    with local_service(change=scale_by_itself) as service:
        queries, samples = asyncio.run(load(service))
    result = summarise_spike(queries, samples, plan, args.p99_ms)
    print(as_table(result))
    phases = [asdict(phase) for phase in result.phases]
    print(json.dumps({"machine": machine, "phases": phases, "recovered_s": result.recovered_s}))
    if args.output:
        (args.output / "spike.json").write_text(
            json.dumps({"machine": machine, "spike": asdict(result)}) + "\n", encoding="utf-8"
        )
        (args.output / "spike.png").write_bytes(as_png(result))
    return 0 if result.recovered_s is not None else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m loadtest spike`."""
    few_many, lengths = (1, 10), (20.0, 70.0, 40.0)
    parser.add_argument("--clients", type=count, nargs=2, default=few_many, metavar=("FEW", "MANY"), help="(default: 1 10)")
    parser.add_argument("--seconds", type=positive, nargs=3, default=lengths, metavar=PHASES, help="(default: 20 70 40)")
    parser.add_argument("--p99-ms", type=positive, default=500.0, help="latency bound (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of photos (default: generated ones)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write spike.png and spike.json here")
