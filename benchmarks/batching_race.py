"""The greedy batcher against `@serve.batch`, on the same sleeping model, inside one run.

    python -m benchmarks.batching_race [--step-ms 100] [--callers 32] [--rate 80] [--seconds 4] [--rounds 3]

The model sleeps one step for any batch, so it costs no CPU and the ceiling is known: max_batch / step. Three deployments:
`serve.batch` at its default wait, `serve.batch` with its wait tuned to the step (an operator must know the step), and the
greedy batcher. Two loads: closed loop (each caller sends when its last answer came), and Poisson arrivals (latency counted
from the scheduled time). No HTTP: callers use handles.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.measure import add_arguments, as_number, as_range, finish, spread, spread_if_any, table, turns
from loadtest.load.openloop import Query, poisson_schedule, run_closed_loop, run_open_loop, summarise
from loadtest.load.traffic import OK
from pipeline.inference.batcher import GreedyBatcher

NAMES = ("serve.batch", "serve.batch tuned", "greedy")

ONGOING = 1024
"""max_ongoing_requests, so high that no call queues in front of a replica."""

PATIENCE_S = 600.0
"""Time limit of a Poisson arrival, so long that all are answered, seconds."""


class SleepingModel:
    """A blocking model: one step for a batch of any size. Keeps the sizes it saw."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._sizes: list[int] = []

    def __call__(self, items: list[int]) -> list[int]:
        self._sizes.append(len(items))
        time.sleep(self._step_s)
        return items

    def take_sizes(self) -> list[int]:
        """Batch sizes since the last call."""
        sizes, self._sizes = self._sizes, []
        return sizes


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 0})
class ServeBatch:
    """`@serve.batch`; `wait_s` None keeps its default wait."""

    def __init__(self, step_s: float, max_batch: int, wait_s: float | None = None) -> None:
        self._model = SleepingModel(step_s)
        score: Any = self._score  # the decorator's type hides the setters
        score.set_max_batch_size(max_batch)
        if wait_s is not None:
            score.set_batch_wait_timeout_s(wait_s)

    @serve.batch
    async def _score(self, items: list[int]) -> list[int]:
        return await asyncio.to_thread(self._model, items)

    async def __call__(self, item: int) -> int:
        return await self._score(item)

    def take_sizes(self) -> list[int]:
        """Sizes of the batches since the last call."""
        return self._model.take_sizes()


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 0})
class Greedy:
    """The project's own batcher, with the wait that is `serve.batch`'s default."""

    def __init__(self, step_s: float, max_batch: int) -> None:
        self._model = SleepingModel(step_s)
        self._batcher: GreedyBatcher[int, int] = GreedyBatcher(self._model, max_batch=max_batch, max_wait_s=0.01)

    async def __call__(self, item: int) -> int:
        return (await self._batcher.submit(item)).result

    def take_sizes(self) -> list[int]:
        """Sizes of the batches since the last call."""
        return self._model.take_sizes()


@contextmanager
def local_serve() -> Iterator[None]:
    """A Ray Serve of this process's own, without HTTP and dashboard, gone at the end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


def deploy(step_s: float, max_batch: int, names: Collection[str] = NAMES) -> dict[str, DeploymentHandle[Any]]:
    """Start the named contestants on a model of `step_s` seconds a batch and return their handles by name."""
    serve_batch: Any = ServeBatch  # Ray's decorators are typed as if they left the class as it was, without `bind`
    greedy: Any = Greedy
    apps = {
        "serve.batch": serve_batch.bind(step_s, max_batch),
        "serve.batch tuned": serve_batch.bind(step_s, max_batch, step_s),
        "greedy": greedy.bind(step_s, max_batch),
    }
    return {name: serve.run(apps[name], name=name.replace(" ", "_"), route_prefix=None) for name in names}


@dataclass(frozen=True, slots=True)
class Load:
    """The load.

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
    """One measurement; None if there is no sample.

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


class HandleClient:
    """Asks a deployment by its handle, as `loadtest.load.openloop.Client` asks a service by HTTP."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, number: int, began: float, scheduled_s: float, patience_s: float = 0.0) -> Query:  # noqa: ARG002 (a handle waits as long as it takes)
        """One item, answered with itself."""
        sent_s = time.perf_counter() - began
        try:
            outcome = OK if await self._handle.remote(number) == number else "an answer went to the wrong caller"
        except Exception as error:
            outcome = type(error).__name__
        return Query(scheduled_s, sent_s, time.perf_counter() - began, outcome)


async def closed_loop(client: HandleClient, load: Load) -> tuple[list[Query], float]:
    """`load.callers` callers, each sending its next item when the last was answered; queries, and when all callers are there, seconds.

    They start spread over two steps, as independent clients do: `serve.batch` keeps the batches that its callers start with, so
    32 callers that start at one instant would form two full batches in every step.
    """
    queries: list[Query] = []
    began, ramp_s = time.perf_counter(), 2 * load.step_s

    async def caller(number: int) -> None:
        await asyncio.sleep(number / load.callers * ramp_s)
        await run_closed_loop(client, queries, began, ramp_s + load.seconds)

    await asyncio.gather(*map(caller, range(load.callers)))
    return queries, ramp_s


async def poisson(client: HandleClient, load: Load) -> tuple[list[Query], float]:
    """Arrivals at `load.rate_per_s` for `load.seconds`, sent whether or not earlier ones were answered; all are awaited."""
    schedule = poisson_schedule(load.rate_per_s, round(load.rate_per_s * load.seconds), load.seed)
    return await run_open_loop(client, schedule, patience_s=PATIENCE_S), 0.0


LOADS = {"closed loop": closed_loop, "poisson": poisson}


async def measure(handle: DeploymentHandle[Any], kind: str, load: Load) -> Outcome:
    """Warm one contestant up, put one load on it, and sum up."""
    client = HandleClient(handle)
    await asyncio.gather(*(client.ask(number, time.perf_counter(), 0.0) for number in range(load.max_batch)))
    await handle.take_sizes.remote()
    queries, from_s = await LOADS[kind](client, load)
    sizes = await handle.take_sizes.remote()
    summary = summarise(queries, None)
    return Outcome(
        per_s=sum(query.outcome == OK and from_s <= query.done_s <= from_s + load.seconds for query in queries) / load.seconds,
        mean_batch=statistics.fmean(sizes) if sizes else None,
        p50_ms=summary.p50_ms,
        p99_ms=summary.p99_ms,
        errors=summary.queries - summary.ok,
    )


async def race(handles: dict[str, DeploymentHandle[Any]], load: Load, rounds: int) -> dict[tuple[str, str], list[Outcome]]:
    """One outcome a round of every (load, contestant), interleaved."""
    results: dict[tuple[str, str], list[Outcome]] = {(kind, name): [] for kind in LOADS for name in handles}
    for _, name in turns(list(handles), rounds):
        for kind in LOADS:
            results[kind, name].append(await measure(handles[name], kind, load))
    return results


def as_table(results: dict[tuple[str, str], list[Outcome]]) -> str:
    """One row a load and contestant: medians, and the spread of the rate."""
    rows = []
    for (kind, name), outcomes in results.items():
        medians = [
            spread_if_any([value for one in outcomes if (value := getattr(one, key)) is not None])
            for key in ("mean_batch", "p50_ms", "p99_ms")
        ]
        rate = as_range(spread([one.per_s for one in outcomes]))
        cells = [as_number(found.median if found else None) for found in medians]
        rows.append([kind, name, rate, *cells, str(sum(one.errors for one in outcomes))])
    return table(["load", "batcher", "items/s", "batch", "p50 ms", "p99 ms", "errors"], rows)


def main() -> None:
    """Race, print the table, and one JSON line last."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching_race", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=100.0, help="milliseconds the model sleeps for a batch")
    parser.add_argument("--max-batch", type=int, default=16, help="items")
    parser.add_argument("--callers", type=int, default=32, help="closed-loop callers")
    parser.add_argument("--rate", type=float, default=80.0, help="mean Poisson arrivals a second")
    parser.add_argument("--seed", type=int, default=0, help="of the arrival times")
    add_arguments(parser, images=False)
    args = parser.parse_args()
    load = Load(args.step_ms / 1000, args.max_batch, args.callers, args.rate, args.seconds, args.seed)
    print(f"ceiling: {load.ceiling_per_s:.0f} items/s (batches of {load.max_batch}, {args.step_ms:.0f} ms each)", flush=True)
    with local_serve():
        results = asyncio.run(race(deploy(load.step_s, load.max_batch), load, args.rounds))
    print(as_table(results))
    outcomes = {f"{kind}, {name}": [asdict(one) for one in rounds] for (kind, name), rounds in results.items()}
    facts = asdict(load) | {"ceiling_per_s": load.ceiling_per_s, "rounds": args.rounds, "outcomes": outcomes}
    finish("batching_race", facts, args.output)


if __name__ == "__main__":
    main()
