"""The greedy batcher against `@serve.batch`, on the same sleeping model, inside one run.

    python -m benchmarks.batching_race [--step-ms 100] [--callers 32] [--rate 80] [--seconds 4] [--rounds 3]

The model sleeps one step for any batch, so it costs no CPU and the ceiling is known: max_batch / step. Three deployments:
`serve.batch` at its default wait, `serve.batch` with its wait tuned to the step (an operator must know the step), and the
greedy batcher. Two loads: closed loop (each caller sends when its last answer came), and Poisson arrivals (latency counted
from the scheduled time). Rounds are interleaved; the table shows medians. No HTTP: callers use handles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, fields

import ray
from ray.serve.handle import DeploymentHandle

from benchmarks.batching_contestants import deploy, local_serve


@dataclass(frozen=True, slots=True)
class Load:
    """What the contestants get.

    Args:
        step_s: seconds the model sleeps for one batch of any size.
        max_batch: largest batch, items.
        callers: closed-loop callers.
        rate_per_s: mean Poisson arrivals a second.
        seconds: length of one measurement.
        seed: of the arrival times.
    """

    step_s: float = 0.1
    max_batch: int = 16
    callers: int = 32
    rate_per_s: float = 80.0
    seconds: float = 4.0
    seed: int = 0

    @property
    def ceiling_per_s(self) -> float:
        """Items a second if every batch were full and the model never idle."""
        return self.max_batch / self.step_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measurement; None where there is no sample.

    Args:
        per_s: items answered a second within the measured time.
        mean_batch: items.
        p50_ms, p99_ms: latency, from the send (closed loop) or the scheduled time (Poisson).
        errors: calls that raised.
    """

    per_s: float
    mean_batch: float | None
    p50_ms: float | None
    p99_ms: float | None
    errors: int


Call = Callable[[int], Awaitable[int]]
Samples = list[tuple[float, float] | Exception]
"""(when the answer came, seconds from the start of the measurement; latency, seconds) of each call, or what it raised."""


async def closed_loop(call: Call, load: Load) -> Samples:
    """`load.callers` callers, each sending its next item when the last was answered, for `load.seconds` after a short ramp.

    They start spread over two steps, as strangers do: `serve.batch` keeps the batches that its callers start with, so
    that 32 callers who start in one instant would hand it two full batches for good.
    """
    samples: Samples = []
    ramp_s = 2 * load.step_s
    start = time.perf_counter() + ramp_s

    async def caller(number: int) -> None:
        await asyncio.sleep(number / load.callers * ramp_s)
        while time.perf_counter() < start + load.seconds:
            await _timed(call, number, start, time.perf_counter(), samples)

    await asyncio.gather(*(caller(number) for number in range(load.callers)))
    return samples


async def poisson(call: Call, load: Load) -> Samples:
    """Arrivals at `load.rate_per_s` for `load.seconds`, sent whether or not earlier ones were answered; all are awaited."""
    samples: Samples = []
    gaps = random.Random(load.seed)
    calls: list[asyncio.Task[None]] = []
    start = scheduled = time.perf_counter()
    while (scheduled := scheduled + gaps.expovariate(load.rate_per_s)) < start + load.seconds:
        await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
        calls.append(asyncio.create_task(_timed(call, len(calls), start, scheduled, samples)))
    await asyncio.gather(*calls)
    return samples


async def _timed(call: Call, item: int, start: float, sent: float, samples: Samples) -> None:
    try:
        if await call(item) != item:
            raise RuntimeError("an answer went to the wrong caller")
        now = time.perf_counter()
        samples.append((now - start, now - sent))
    except Exception as error:
        samples.append(error)


LOADS = {"closed loop": closed_loop, "poisson": poisson}


async def measure(handle: DeploymentHandle, kind: str, load: Load) -> Outcome:
    """Warm one contestant up, put one load on it, and sum up."""
    await asyncio.gather(*(_plain(handle, number) for number in range(load.max_batch)))
    await handle.take_sizes.remote()
    samples = await LOADS[kind](lambda item: _plain(handle, item), load)
    sizes = await handle.take_sizes.remote()
    answered = [sample for sample in samples if not isinstance(sample, Exception)]
    latencies_ms = sorted(1000 * latency_s for _, latency_s in answered)
    return Outcome(
        per_s=sum(0 <= at_s <= load.seconds for at_s, _ in answered) / load.seconds,
        mean_batch=statistics.fmean(sizes) if sizes else None,
        p50_ms=_percentile(latencies_ms, 0.50),
        p99_ms=_percentile(latencies_ms, 0.99),
        errors=len(samples) - len(answered),
    )


async def _plain(handle: DeploymentHandle, item: int) -> int:
    return await handle.remote(item)


def _percentile(ordered: Sequence[float], fraction: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None


async def race(handles: dict[str, DeploymentHandle], load: Load, rounds: int) -> dict[str, dict[str, list[Outcome]]]:
    """`rounds` interleaved rounds: load → contestant → one outcome a round."""
    results: dict[str, dict[str, list[Outcome]]] = {kind: {name: [] for name in handles} for kind in LOADS}
    for number in range(rounds):
        for kind in LOADS:
            for name, handle in handles.items():
                results[kind][name].append(await measure(handle, kind, load))
        print(f"round {number + 1} of {rounds} done", flush=True)
    return results


def median(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Field by field over the rounds; None where a round had no sample."""
    columns = {field.name: [getattr(one, field.name) for one in outcomes] for field in fields(Outcome)}
    return {name: None if None in column else statistics.median(column) for name, column in columns.items()}


def print_table(results: dict[str, dict[str, list[Outcome]]]) -> None:
    """One row a load and contestant: medians, and the spread of the rate."""
    print(f"{'load':<12} {'batcher':<18} {'items/s':>8} {'(min-max)':>12} {'batch':>6} {'p50 ms':>8} {'p99 ms':>8} {'errors':>6}")
    for kind, contestants in results.items():
        for name, outcomes in contestants.items():
            middle, rates = median(outcomes), [one.per_s for one in outcomes]
            spread = f"({min(rates):.0f}-{max(rates):.0f})"
            cells = [f"{'-' if middle[key] is None else format(middle[key], '.1f'):>8}" for key in ("p50_ms", "p99_ms")]
            batch = "-" if middle["mean_batch"] is None else format(middle["mean_batch"], ".1f")
            row = f"{kind:<12} {name:<18} {middle['per_s']:>8.1f} {spread:>12} {batch:>6}"
            print(row, *cells, f"{middle['errors']:>6.0f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching_race", description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=100.0, help="milliseconds the model sleeps for a batch")
    parser.add_argument("--max-batch", type=int, default=16, help="items")
    parser.add_argument("--callers", type=int, default=32, help="closed-loop callers")
    parser.add_argument("--rate", type=float, default=80.0, help="mean Poisson arrivals a second")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the arrival times")
    return parser.parse_args()


def main() -> None:
    """Race, print the table, and one JSON line last."""
    args = _arguments()
    load = Load(args.step_ms / 1000, args.max_batch, args.callers, args.rate, args.seconds, args.seed)
    print(f"ceiling: {load.ceiling_per_s:.0f} items/s (batches of {load.max_batch}, {args.step_ms:.0f} ms each)", flush=True)
    with local_serve():
        results = asyncio.run(race(deploy(load.step_s, load.max_batch), load, args.rounds))
    print_table(results)
    medians = {kind: {name: median(outcomes) for name, outcomes in rows.items()} for kind, rows in results.items()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "ray": ray.__version__}
    setting = {**asdict(load), "ceiling_per_s": load.ceiling_per_s, "rounds": args.rounds, **machine}
    print(json.dumps({"benchmark": "batching_race", **setting, "medians": medians}))


if __name__ == "__main__":
    main()
