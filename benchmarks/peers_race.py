"""Compares this service with other servers: same weights, photos, client and cores, one contestant at a time.

    python -m benchmarks.peers_race [--peers litserve ...] [--model rtmdet-ins_nano_person | rtmdet-ins_s] [--rounds 3] [--output FILE.json]

    round 1: engine alone ─▶ ours: start, warm up, server rate, offline, stop ─▶ peer ─▶ peer ...
    round 2: the same, another contestant first, from the rates of round 1

Requests hold one photo each: LitServe batches requests, not images. Server is the highest rate of Poisson arrivals whose p99 holds
the bound; offline sends all photos at once. No server writes an access log. Ratios are taken within a round, because the machine's speed
changes less within a round than between rounds; their median is shown. Failures are counted. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import ForeignLoad, add_arguments, finish, turns
from benchmarks.peers.process import PYTHONS, WIRES, peer_process
from benchmarks.peers.standings import MAX_FOREIGN_CORES, OURS, Turn, as_table, errors_of, standings
from deployments.settings import EMBEDDED_MODEL
from jobs.command_line import cli_errors, print_progress
from loadtest.load.openloop import Client, run_single_stream, summarise
from loadtest.load.photos import photos_from
from loadtest.load.scenarios import Result, Setup, find_server_rate, run_offline
from loadtest.load.traffic import SCORE, Wire, request_bodies
from loadtest.planning.engine_alone import measure_engine
from loadtest.service.local_cluster import NotReady
from loadtest.service.local_service import SHIPPED_CONFIG, local_service
from loadtest.service.machine import describe_machine
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import Engine, EngineOptions
from pipeline.types import DetectOptions
from tests.support.seeded import seeded_checkpoint

SEEDED_S = "rtmdet-ins_s"
SEEDED_INSTANCES = 100
SCENARIOS = ("server", "offline")
MAX_BATCH = 8
THREADS = 2
WARM_UP_S = 3.0
OFFLINE_S = 60.0
"""Longest offline run, seconds; slower contestants get fewer photos."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who races.

    Args:
        name: `ours`, or a peer's.
        start: runs it until the block ends and gives its base URL; NotReady (ours) or RuntimeError (a peer) where it cannot.
        wire: how it is asked.
    """

    name: str
    start: Callable[[], AbstractContextManager[str]]
    wire: Wire = SCORE


Measure = Callable[[Contestant, int, float | None], Turn]


def race(
    contestants: Sequence[Contestant], rounds: int, measure: Measure, save: Callable[[list[Turn]], object] = lambda _: None
) -> list[Turn]:
    """Every contestant once a round, each round beginning with another; rates of a round start the search of the next.

    Args:
        measure: of a contestant, the round, and the rate to start at (None: unknown).
        save: gets all turns so far after every round: a race takes hours.
    """
    by_name = {contestant.name: contestant for contestant in contestants}
    done: list[Turn] = []
    known: dict[str, float] = {}
    for round_, name in turns(list(by_name), rounds):
        turn = measure(by_name[name], round_, known.get(name))
        if turn.server_per_s:
            known[name] = turn.server_per_s
        done.append(turn)
        if len(done) % len(by_name) == 0:
            save(done)
    return done


def measure_contestant(
    contestant: Contestant, round_: int, bodies: Sequence[bytes], scenarios: Sequence[str], setup: Setup
) -> Turn:
    """Start, warm up, measure, stop."""
    print_progress(f"round {round_ + 1}: {contestant.name}")
    try:
        with contestant.start() as url:
            details = asyncio.run(_scenarios(url, bodies, scenarios, setup, contestant.wire))
    except (NotReady, RuntimeError) as error:
        print_progress(f"{contestant.name} did not start: {error}")
        return Turn(contestant.name, round_, fault=str(error))
    server, offline = details.get("server"), details.get("offline")
    return Turn(
        contestant.name,
        round_,
        None if server is None else server["rate_per_s"] or 0.0,
        None if offline is None else offline["summary"]["images_per_s"],
        errors_of(details),
        details=details,
    )


async def _scenarios(url: str, bodies: Sequence[bytes], scenarios: Sequence[str], setup: Setup, wire: Wire) -> dict[str, Result]:
    async with Client(url, bodies, wire=wire) as client:
        alone_ms = summarise(await run_single_stream(client, WARM_UP_S), None).p50_ms
        few = max(MAX_BATCH, int(OFFLINE_S * 1e3 / alone_ms)) if alone_ms else MAX_BATCH
        setup = replace(setup, offline_images=min(setup.offline_images, few))
        await run_offline(client, replace(setup, offline_images=2 * MAX_BATCH))  # full batches warmed, too
        results: dict[str, Result] = {}
        if "server" in scenarios:
            results["server"] = await find_server_rate(client, setup)
        if "offline" in scenarios:
            foreign = ForeignLoad()
            results["offline"] = await run_offline(client, setup)
            results["offline"]["foreign_cores"] = cores = foreign.cores()
            if cores > MAX_FOREIGN_CORES:
                print_progress(f"other programs used {cores:.1f} cores meanwhile: this result says little")
        return results


def objects_per_image(engine: Engine, photos: Sequence[bytes]) -> float:
    """Mean number of objects that a photo has at the threshold that all contestants use."""
    loaded = [load_image(photo, DecodeLimits(), engine.info.input_size) for photo in photos]
    return statistics.mean(map(len, engine.detect(loaded, [DetectOptions(0.3, 100)] * len(loaded))))


@contextmanager
def model_file(model: str) -> Iterator[str]:
    """What every contestant loads: a model's name or path as it is; for `rtmdet-ins_s` a file of seeded weights."""
    if model != SEEDED_S:
        yield str(Path(model).resolve()) if Path(model).is_file() else model
        return
    from pipeline.model.checkpoints import save_safetensors

    with tempfile.TemporaryDirectory(prefix="rtmdet-s") as folder:
        path = Path(folder) / f"{SEEDED_S}.safetensors"
        save_safetensors(seeded_checkpoint("s", 640, instances=SEEDED_INSTANCES), path)
        yield str(path)


def contestants_of(peers: Sequence[str], model: str, config: Path, also: Sequence[Path], body: bytes) -> list[Contestant]:
    """Ours from a serve_config.yaml with its model replaced, the same from other files (by their names), and the named peers."""

    def use_model(document: dict[str, Any]) -> None:
        document["applications"][0]["args"].setdefault("model", {})["name"] = model
        document["logging_config"]["enable_access_log"] = False  # as the other servers run

    @contextmanager
    def served(file: Path) -> Iterator[str]:
        with local_service(file, change=use_model) as service:
            yield service.url

    def own(name: str, file: Path) -> Contestant:
        return Contestant(name, lambda: served(file))

    def peer(name: str) -> Contestant:
        return Contestant(name, lambda: peer_process(name, model, body), WIRES.get(name, SCORE))

    return [own(OURS, config), *(own(file.stem, file) for file in also), *map(peer, peers)]


def run(args: argparse.Namespace) -> int:
    """Race and print; returns the exit status: 0 if every server started."""
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    photos = photos_from(args.images)
    bodies = request_bodies(photos, 1)
    setup = Setup(args.p99_ms, args.seconds, args.seed, offline_images=args.offline_images, max_search_s=args.search_seconds)
    ceilings: list[dict[str, float]] = []
    with model_file(args.model) as model:
        engine = load_engine(model, EngineOptions(threads=THREADS, max_batch=MAX_BATCH))

        def measure(contestant: Contestant, round_: int, start_per_s: float | None) -> Turn:
            if len(ceilings) == round_:  # first of its round: nothing else runs
                ceilings.append({str(batch): measure_engine(engine, photos, batch, args.seconds) for batch in (1, MAX_BATCH)})
            known = setup if round_ == 0 else replace(setup, start_per_s=start_per_s, repeats=1)
            return measure_contestant(contestant, round_, bodies, args.scenario, known)

        facts = {
            "model": args.model,
            "engine": asdict(engine.info),
            "objects_per_image": objects_per_image(engine, photos),
            "photos": str(args.images or "generated 640x480"),
            "bound_p99_ms": args.p99_ms,
            "seconds_per_trial": args.seconds,
        }

        def results_of(done: Sequence[Turn]) -> dict[str, Any]:
            return facts | {
                "rounds": len(ceilings),
                "engine_alone_images_per_s": {
                    batch: statistics.median(ceiling[batch] for ceiling in ceilings) for batch in ceilings[0]
                },
                "standings": standings(done, ceilings),
                "turns": [asdict(turn) for turn in done],
            }

        def save(done: Sequence[Turn]) -> None:
            if args.output:
                args.output.write_text(json.dumps({"machine": describe_machine()} | results_of(done)) + "\n")

        done = race(contestants_of(args.peers, model, args.config, args.also, bodies[0]), args.rounds, measure, save)
        results = results_of(done)
    print(as_table(results))
    finish("peers_race", {key: value for key, value in results.items() if key != "turns"})
    return 1 if any(turn.fault for turn in done) else 0


@cli_errors("benchmarks.peers_race")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 measured, 1 a contestant failed, 2 wrong arguments, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_race", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", nargs="+", choices=PYTHONS, default=list(PYTHONS), help="(default: all)")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help=f"name, path, or {SEEDED_S}, seeded (default: %(default)s)")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="(default: both)")
    parser.add_argument("--p99-ms", type=float, default=250.0, help="latency bound (default: %(default)s)")
    parser.add_argument("--search-seconds", type=float, default=400.0, help="of one search at most (default: %(default)s)")
    parser.add_argument("--offline-images", type=int, default=128, help="fewer for slow contestants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=SHIPPED_CONFIG, help="of ours (default: %(default)s)")
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="CONFIG", help="race these configurations of ours, too"
    )
    add_arguments(parser, seconds=10.0)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
