"""Plans the replicas, CPUs and GPUs for a rate with a latency bound.

    python -m loadtest costs --output costs.json
    python -m loadtest plan --costs costs.json --rate 200 --p99-ms 250 --step-ms 12,4 --max-batch 32
    python -m loadtest plan --costs costs.json --config serve_config.gpu.yaml --step-ms 2.5,1.28
    python -m loadtest plan --costs costs.json --check 1 2 4

`--step-ms BASE,PER_IMAGE` is the time of a pass of the network on your accelerator: BASE + PER_IMAGE x batch milliseconds (measure it
with `make bench`); without it, the engine of costs.json is used, on CPUs. `--config` prints the rate that each part of
a file allows at these costs (serve_app/config/capacity.py). `--check` runs the service with simulated detectors
and compares its images/s with the prediction.

The model is simple:
- A detector runs a batch B of waiting images every step(B). max_batch is the largest for which two steps and the rest meet the bound.
- An image waits for half a running step at the usual batch (p50) or a whole one at the largest (p99), then for its own step. The usual
  batch is the number of images that arrive during one step.
- CPU stages: Sakasegawa's approximation of the M/M/c wait (H. Sakasegawa 1977), halved for their nearly constant service times
  (Allen-Cunneen); its tail taken as exponential, so p99 is 4.6 mean waits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from deployments.settings import GroupSettings
from jobs.command_line import amount, count, positive
from loadtest.planning.costs import Costs, read_costs
from loadtest.planning.plan_check import check
from loadtest.service.parts import DECODERS, DETECTOR
from pipeline.errors import ServiceError
from serve_app.config.capacity import StageCosts, Step, as_lines
from serve_app.config_file import check_document, read_document

P99_OF_EXPONENTIAL = math.log(100)
CPU_STAGES = ("Ingress", "ImageLoader", "Polygonizer")
GROUP_IMAGES = GroupSettings().max_images


@dataclass(frozen=True, slots=True)
class Requirements:
    """The requirements.

    Args:
        rate_per_s: images per second.
        p99_ms: latency bound.
        max_batch: most images in a pass.
        utilisation: largest utilisation of a replica, 0..1; the rest is for bursts.
    """

    rate_per_s: float
    p99_ms: float
    max_batch: int = 32
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and self.p99_ms > 0 and self.max_batch >= 1 and 0 < self.utilisation < 1):
            raise ValueError(f"rate, bound and batch must be positive and the utilisation between 0 and 1; got {self}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan.

    Args:
        replicas: by deployment; those of CPU stages take one CPU each.
        batch: images in a pass, at most.
        cpus: CPUs for all stages and Ray, including the detectors' host work.
        max_in_flight: `ingress.groups.max_in_flight`, so that two batches for every Detector fit.
        p50_ms, p99_ms: expected latency.
        mb_per_s: bytes moved a second by hop, MB.
        limit: the part that limits the rate next.
    """

    replicas: dict[str, int]
    batch: int
    cpus: float
    max_in_flight: int
    p50_ms: float
    p99_ms: float
    mb_per_s: dict[str, float]
    limit: str


class CannotPlan(ValueError):
    """A plan is not possible from these costs; the message says what is missing."""


class BoundTooTight(ValueError):
    """No number of replicas meets the bound; the message says what takes too long."""


def plan(costs: Costs, step: Step, required: Requirements) -> Plan:
    """Size every stage.

    Raises:
        BoundTooTight: even a single image takes longer than the bound.
    """
    stage_ms = {stage: cpu_ms(costs, stage) for stage in CPU_STAGES}
    needed = {stage: required.rate_per_s * ms / 1e3 for stage, ms in stage_ms.items()}
    replicas = {stage: max(1, math.ceil(cores / required.utilisation)) for stage, cores in needed.items()}
    waits = {stage: wait_ms(needed[stage], replicas[stage], stage_ms[stage]) for stage in CPU_STAGES}
    outside_p50 = sum(stage_ms.values()) + cpu_ms(costs, DETECTOR) + sum(waits.values())
    outside_p99 = outside_p50 + (P99_OF_EXPONENTIAL - 1) * sum(waits.values())
    batch = _largest_batch(step, required, outside_p99)
    detectors = max(1, math.ceil(required.rate_per_s / (required.utilisation * step.per_s(batch))))
    cores = required.rate_per_s * host_cpu_ms(costs) / 1e3 + sum(costs.idle_cores.values())
    used = {stage: needed[stage] / replicas[stage] for stage in CPU_STAGES}
    used[DETECTOR] = required.rate_per_s / (detectors * step.per_s(batch))
    return Plan(
        replicas=replicas | {DETECTOR: detectors},
        batch=batch,
        cpus=cores / required.utilisation,
        max_in_flight=max(2, math.ceil(2 * batch * detectors / (GROUP_IMAGES * replicas["Ingress"]))),
        p50_ms=outside_p50 + 1.5 * step.ms(usual_batch(step, required.rate_per_s / detectors, batch)),
        p99_ms=outside_p99 + 2 * step.ms(batch),
        mb_per_s={hop: required.rate_per_s * size / 1e6 for hop, size in costs.hop_bytes.items()},
        limit=max(used, key=used.__getitem__),
    )


def cpu_ms(costs: Costs, stage: str) -> float:
    """CPU milliseconds per image of a stage; decoders count for the ImageLoader, the engine is left out."""
    net = costs.net_cpu_ms.get(stage, 0.0)
    if stage == "ImageLoader":
        return net + costs.net_cpu_ms.get(DECODERS, 0.0)
    return max(0.0, net - costs.engine_cpu_ms) if stage == DETECTOR else net


def host_cpu_ms(costs: Costs) -> float:
    """CPU milliseconds per image of everything but the engine, Ray's own processes included."""
    return sum(costs.net_cpu_ms.values()) - costs.net_cpu_ms.get(DETECTOR, 0.0) + cpu_ms(costs, DETECTOR)


def wait_ms(busy: float, replicas: int, service_ms: float) -> float:
    """Mean wait before one of `replicas` is free, milliseconds.

    Args:
        busy: replicas that would be busy all the time; below `replicas`.
    """
    load = busy / replicas
    return float(service_ms * load ** (math.sqrt(2 * (replicas + 1)) - 1) / (replicas * (1 - load)) / 2)


def usual_batch(step: Step, rate_per_s: float, max_batch: int) -> int:
    """The usual batch of a detector: the number of images that arrive during its step, 1 to `max_batch`."""
    share = rate_per_s / 1e3
    free = 1 - share * step.per_image_ms
    return max_batch if free <= 0 else min(max_batch, max(1, round(share * step.base_ms / free)))


def predicted_per_s(
    costs: Costs, cores: int, step: Step, detectors: int, batch: int, client_ms: float = 0.0
) -> tuple[float, str]:
    """The highest images/s on one machine, and what limits it: the simulated detectors, or the machine's CPUs.

    Args:
        client_ms: CPU milliseconds per image of a client on the same machine.
    """
    by_detectors = detectors * step.per_s(batch)
    by_cpus = (cores - sum(costs.idle_cores.values())) / (host_cpu_ms(costs) + client_ms) * 1e3
    return (by_detectors, "detectors") if by_detectors <= by_cpus else (by_cpus, "CPUs")


def _largest_batch(step: Step, required: Requirements, outside_ms: float) -> int:
    fitting = [batch for batch in range(1, required.max_batch + 1) if outside_ms + 2 * step.ms(batch) <= required.p99_ms]
    if not fitting:
        raise BoundTooTight(
            f"p99 {required.p99_ms:g} ms cannot be met: two steps of the network at batch 1 take {2 * step.ms(1):.0f} ms and the rest "
            f"{outside_ms:.0f} ms. Use a faster accelerator or a smaller model, or a higher bound."
        )
    return fitting[-1]


def engine_step(costs: Costs) -> Step:
    """The step of the engine in the costs, from its two batch sizes.

    Raises:
        CannotPlan: the engine did not run on the CPU; a GPU's step depends on more than two batch sizes.
    """
    if not costs.on_cpu:
        raise CannotPlan(
            f"the costs were measured with {costs.model} on a GPU or simulated, not on this CPU; give the step with --step-ms (make bench)"
        )
    (one, one_ms), (many, many_ms) = costs.engine_ms
    per_image = (many_ms - one_ms) / (many - one)
    return Step(max(0.0, one_ms - per_image * one), per_image)


def as_table(plan_: Plan, step: Step, assumed: bool) -> str:
    """The plan as a table."""
    rows = [f"{stage:12} {count:4} replicas" for stage, count in plan_.replicas.items()]
    rows += [
        f"CPUs in total {plan_.cpus:.1f}, without the network; batches of {plan_.batch}; "
        f"ingress.groups.max_in_flight {plan_.max_in_flight}",
        f"expected p50 {plan_.p50_ms:.0f} ms, p99 {plan_.p99_ms:.0f} ms; next bottleneck: {plan_.limit}",
        "MB/s: " + ", ".join(f"{hop} {mb:.1f}" for hop, mb in plan_.mb_per_s.items()),
        f"measured: CPU milliseconds and bytes per image. {'assumed' if assumed else 'measured (this CPU)'}: a step of "
        f"{step.base_ms:g} + {step.per_image_ms:.1f} x batch ms. Modelled: waits.",
    ]
    return "\n".join(rows)


def stage_costs(costs: Costs, fetch_ms: float) -> StageCosts:
    """Measured costs as `serve_app.config.capacity` takes them."""
    loader_ms, decode_ms = (costs.net_cpu_ms.get(part, 0.0) for part in ("ImageLoader", DECODERS))
    return StageCosts(cpu_ms(costs, "Ingress"), loader_ms, decode_ms, cpu_ms(costs, "Polygonizer"), fetch_ms)


def print_chain(config: Path, costs: Costs, step: Step, fetch_ms: float) -> None:
    """Print the rate that each part of a configuration allows at these costs, and the bottleneck."""
    for settings, deployments in check_document(read_document(config)):
        print(*as_lines(settings, deployments, stage_costs(costs, fetch_ms), step, measured=True), sep="\n")


def run(args: argparse.Namespace) -> int:
    """Measure or plan, and print; returns 0, or 1 if the bound cannot be met."""
    costs, machine = read_costs(args.costs)
    if costs.layout != "stages":
        print(
            "the costs are of layout: together, one process for all stages; measure a config of layout: stages", file=sys.stderr
        )
        return 2
    if args.check:
        rows = [check(count, partial(predicted_per_s, costs, machine["cores"])) for count in args.check]
        print("detectors  predicted/s  limited by  measured/s")
        for row in rows:
            print(f"{row['detectors']:9} {row['predicted_per_s']:12.1f}  {row['limit']:10} {row['measured_per_s']:11.1f}")
        print(json.dumps({"machine": machine, "check": rows}))
        return 0
    try:
        step = args.step_ms or engine_step(costs)
        if args.config:
            print_chain(args.config, costs, step, args.fetch_ms)
            return 0
        result = plan(costs, step, Requirements(args.rate, args.p99_ms, args.max_batch, args.utilisation))
    except BoundTooTight as error:
        print(error, file=sys.stderr)
        return 1
    except ServiceError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_table(result, step, assumed=bool(args.step_ms)))
    print(json.dumps(asdict(result)))
    return 0


def _step(text: str) -> Step:
    """argparse type `BASE,PER_IMAGE`."""
    try:
        base_ms, per_image_ms = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not BASE,PER_IMAGE, two numbers of milliseconds such as 12,4") from error
    if not (0 <= base_ms < math.inf and 0 <= per_image_ms < math.inf and base_ms + per_image_ms > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: neither part may be negative, and not both may be 0")
    return Step(base_ms, per_image_ms)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m loadtest plan`."""
    parser.add_argument("--costs", type=Path, required=True, help="JSON of python -m loadtest costs --output")
    parser.add_argument("--rate", type=positive, default=100.0, help="images/s (default: %(default)s)")
    parser.add_argument("--p99-ms", type=positive, default=250.0, help="latency bound (default: %(default)s)")
    parser.add_argument(
        "--step-ms", type=_step, metavar="BASE,PER_IMAGE", help="step of your accelerator (default: of the engine in costs.json)"
    )
    parser.add_argument(
        "--config", type=Path, help="a serve_config.yaml: print the rate that each part of it allows, and the bottleneck"
    )
    parser.add_argument(
        "--fetch-ms", type=amount, default=StageCosts().fetch_ms, help="time to fetch a URL (default: %(default)s)"
    )
    parser.add_argument("--max-batch", type=count, default=32, help="most images in a pass (default: %(default)s)")
    parser.add_argument("--utilisation", type=float, default=0.7, help="largest utilisation of a replica (default: %(default)s)")
    parser.add_argument(
        "--check", type=count, nargs="+", metavar="DETECTORS", help="compare with runs of so many simulated detectors"
    )
