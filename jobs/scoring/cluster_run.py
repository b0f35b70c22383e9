"""Runs a batch on a cluster, from the list of photos to the rows; see `jobs.batch_ray`."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray import serve
from ray.data import ActorPoolStrategy
from ray.data.checkpoint import CheckpointConfig

from jobs.command_line import CommandFault
from jobs.ray_session import connect
from jobs.scoring.batch_output import in_use
from jobs.scoring.cluster_inputs import ID, Listed, count_rows, filesystem_of, listed
from jobs.scoring.cluster_output import MANIFEST, CocoWriter, claimed, settings_of
from jobs.scoring.cluster_stages import Counts, Detect, Load, Outline, Tally
from jobs.scoring.cluster_through import Through
from jobs.scoring.tables import InputsError
from jobs.scoring.tiles import Grid
from pipeline.images.decoder_options import MAX_SIDE
from pipeline.inference.engine import EngineInfo, EngineOptions
from pipeline.model.zoo import DEFAULT_CACHE, ModelHeader, hash_of_file, read_header
from pipeline.types import DetectOptions, OutlineOptions

TASK_CPUS = 0.1
"""CPUs of a task that reads or writes rows; it mostly waits."""
FILTER_CPUS = 1
"""CPUs of Ray Data's actor that filters finished photos."""
IDLE_WORKER_MS = 60_000
"""How long a cluster that this job starts keeps idle workers, milliseconds. Ray's second is shorter than the pauses between two tasks, and
on few cores their new processes then take longer than the photos."""
EVERY_S = 5.0
"""Seconds between two lines of progress."""
MODEL_INFO_TIMEOUT_S = 30.0
"""How long an application may take to say which model it runs, seconds."""
Stages = Callable[[Any, Any], Any]
"""A dataset of photos and the job's Tally to a dataset of rows."""
NAMED_ERRORS = ("TooManyErrors", "CallRefused")
"""Errors of our stages that are printed without a traceback."""


class Progress(threading.Thread):
    """Prints rate and time left while the job runs.

    Args:
        tally: of the job.
        total, before: number of photos, and how many an earlier run has scored.
    """

    def __init__(self, tally: Any, total: int, before: int) -> None:
        super().__init__(daemon=True)
        self._tally, self._total, self._before = tally, total, before
        self._began, self._ended = time.monotonic(), threading.Event()
        self._first: tuple[float, int] | None = None

    def run(self) -> None:
        """Print a line every `EVERY_S` seconds."""
        while not self._ended.wait(EVERY_S):
            print(self.line(), file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Stop printing."""
        self._ended.set()
        self.join()

    def line(self) -> str:
        """The current line of progress."""
        counts: Counts = ray.get(self._tally.counts.remote())
        rate = self._rate(counts.done)
        left = self._total - self._before - counts.done
        eta = f"{left / rate / 60:.1f} min left" if rate and left > 0 else "done" if left <= 0 else "starting"
        return f"{self._before + counts.done:,} of {self._total:,} photos, {counts.errors:,} errors; {rate:.1f} photos/s, {eta}"

    def _rate(self, done: int) -> float:
        """Photos/s since the first were done: workers take a while to start."""
        now = time.monotonic()
        if done and not self._first:
            self._first = now, done
        if not self._first or done == self._first[1]:
            return done / (now - self._began)
        return (done - self._first[1]) / (now - self._first[0])


def run(args: argparse.Namespace) -> int:
    """Score what has no row yet; returns the exit status.

    Raises:
        InputsError: the source or the output cannot be used.
        CommandFault: the batch stopped.
    """
    output = args.output.rstrip("/") if "://" in args.output else str(Path(args.output).resolve())
    coco = CocoWriter(args.coco) if args.coco else None
    stages, made_by = _through(args) if args.through else _staged(args)
    with claimed(output, settings_of(args, output, made_by)):
        photos = listed(args.source, f"{output}/{MANIFEST}")
        _connect()
        _check_room(args)
        return _run(args, output, photos, stages, coco)


def _connect() -> None:
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKER_MS))
    connect(log_to_driver=False, namespace="serve")


def _run(args: argparse.Namespace, output: str, photos: Listed, stages: Stages, coco: CocoWriter | None) -> int:
    _set_up(output)
    before = count_rows(f"{output}/checkpoint")
    try:
        tally = Tally.options(name=f"jobs.batch_ray {output}").remote(args.error_threshold)  # type: ignore[attr-defined]
    except ValueError as error:
        raise in_use(output) from error
    progress = Progress(tally, photos.total, before)
    progress.start()
    try:
        _write(photos, stages, args.format, output, tally)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("interrupted; the same command continues from here") from interrupt
    except ray.exceptions.RayError as error:
        raise CommandFault(f"{output}: stopped: {_why(error)}") from error
    finally:
        progress.stop()
    print(progress.line())
    counts: Counts = ray.get(tally.counts.remote())
    if (rows := count_rows(f"{output}/checkpoint")) < photos.total:
        missing = f"{photos.total - rows:,} of {photos.total:,} photos have no row; the same command tries them again"
        raise CommandFault(f"{missing}. {counts.first_fault}" if counts.first_fault else missing)
    if coco:
        print(coco.write(output, args.format))
    if counts.done and counts.done == counts.errors and not before:
        message = f"not one of {counts.done:,} photos could be scored; the first: {counts.first_error}"
        print(f"jobs.batch_ray: {message}", file=sys.stderr)
        return 1
    return 0


def _set_up(output: str) -> None:
    """Set Ray Data's context: a checkpoint in the output; no progress bars, advice on workers' memory, and tracebacks on the console."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file has all of it
            handler.setLevel(logging.CRITICAL)
    filesystem, folder = filesystem_of(output)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    context.use_datasource_v2 = False  # its listing takes a whole CPU, whatever the read is given
    CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES = 0  # a GB reserved for each by default: more than small nodes have
    context.checkpoint_config = CheckpointConfig(
        ID, f"{folder}/checkpoint", delete_checkpoint_on_success=False, override_filesystem=filesystem
    )


def _write(photos: Listed, stages: Stages, row_format: str, output: str, tally: Any) -> None:
    """Score the photos and write their rows."""
    filesystem, folder = filesystem_of(output)
    columns = None if photos.column is None else [ID, photos.column]
    dataset = ray.data.read_parquet(list(photos.files), filesystem=photos.filesystem, columns=columns, num_cpus=TASK_CPUS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # Ray 2.60 has no other way to give max_restarts
        rows = stages(dataset, tally)
    write = rows.write_parquet if row_format == "parquet" else rows.write_json
    write(f"{folder}/rows", filesystem=filesystem, ray_remote_args={"num_cpus": TASK_CPUS})


def _why(error: Exception) -> str:
    """The error that stopped a worker, without Ray's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if ours := next((line for line in lines[::-1] if any(name in line for name in NAMED_ERRORS)), None):
        return ours.partition(": ")[2]
    return f"{lines[-1].strip()}. The same command goes on from here; the whole error is in Ray's logs (/tmp/ray/session_latest/logs)"


def _staged(args: argparse.Namespace) -> tuple[Stages, dict[str, Any]]:
    """Stages of this job's own workers, and what determines their rows."""
    header = read_header(args.model)
    grid = _grid(args.tiles, args.overlap, header.input_size) if args.tiles > 1 else None
    made_by = {"model": args.model, "weights": hash_of_file(args.model), "engine": args.engine, "precision": args.precision}
    return functools.partial(_with_workers, args, header, grid), made_by


def _grid(tiles: int, overlap: float, input_size: int) -> Grid:
    """How photos are cut. Raises InputsError if they would have to be larger than a decoder makes them."""
    grid = Grid(tiles, overlap, input_size)
    if grid.side_px > MAX_SIDE:
        max_tiles = max(fewer for fewer in range(1, tiles) if Grid(fewer, overlap, input_size).side_px <= MAX_SIDE)
        raise InputsError(
            f"--tiles {tiles} scales photos to {grid.side_px} px, and {MAX_SIDE} is the most: with this model and --overlap {overlap:g}, "
            f"--tiles {max_tiles} is the most"
        )
    return grid


def _with_workers(args: argparse.Namespace, header: ModelHeader, grid: Grid | None, photos: Any, tally: Any) -> Any:
    gpus = {"num_gpus": args.detector_gpus} if args.detector_gpus else {}
    engine = EngineOptions(
        args.engine,
        args.precision,
        threads=max(round(args.detector_cpus), 1),
        max_batch=args.detector_batch,
        cache_dir=DEFAULT_CACHE,
    )
    restarts = _restarts(args)
    worker = {"num_cpus": args.worker_cpus} | restarts
    loaded = photos.map_batches(
        Load,
        fn_constructor_args=(header.input_size, grid),
        fn_constructor_kwargs={"white_level": args.white_level},
        batch_size=args.mini_batch_size,
        compute=ActorPoolStrategy(size=args.loaders),
        **worker,
    )
    detected = loaded.map_batches(
        Detect,
        fn_constructor_args=(args.model, engine, DetectOptions(args.score_threshold)),
        batch_size=args.detector_batch,
        compute=ActorPoolStrategy(size=args.detectors),
        num_cpus=args.detector_cpus,
        **restarts,
        **gpus,
    )
    return detected.map_batches(
        Outline,
        fn_constructor_args=(header.classes, OutlineOptions(mask_format=args.mask_format), tally),
        batch_size=args.mini_batch_size,
        compute=ActorPoolStrategy(size=args.outliners),
        **worker,
    )


def _through(args: argparse.Namespace) -> tuple[Stages, dict[str, Any]]:
    """The stage that asks a running application, and what determines its rows.

    Raises:
        InputsError: no such application runs.
    """
    _connect()
    applications = serve.status().applications
    if args.through not in applications or applications[args.through].status != "RUNNING":
        there = ", ".join(f"{other} ({found.status.value})" for other, found in applications.items()) or "none"
        raise InputsError(f"--through {args.through}: no such application runs in this cluster (RAY_ADDRESS); there is: {there}")
    try:
        runs: EngineInfo = serve.get_app_handle(args.through).model_info.remote().result(timeout_s=MODEL_INFO_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise InputsError(f"--through {args.through}: it does not say which model it runs ({type(error).__name__})") from error
    made_by = {"model": runs.model, "weights": runs.weights, "engine": runs.engine, "precision": runs.precision}
    return functools.partial(_by_application, args), made_by


def _by_application(args: argparse.Namespace, photos: Any, tally: Any) -> Any:
    params = {"score_threshold": args.score_threshold, "mask_format": args.mask_format}
    return photos.map_batches(
        Through,
        fn_constructor_args=(args.through, params, tally),
        batch_size=args.mini_batch_size,
        compute=ActorPoolStrategy(size=args.loaders),
        num_cpus=args.worker_cpus,
        **_restarts(args),
    )


def _restarts(args: argparse.Namespace) -> dict[str, int]:
    return {"max_restarts": args.max_retries, "max_task_retries": args.max_retries}


def _check_room(args: argparse.Namespace) -> None:
    """Check that the cluster has room for the workers: Ray would let them wait for ever without a message.

    Raises:
        InputsError: the workers need more than the cluster has.
    """
    has = ray.available_resources() if args.through else ray.cluster_resources()  # the application keeps what it has
    workers = (args.loaders + (0 if args.through else args.outliners)) * args.worker_cpus
    cpus = workers + (0 if args.through else args.detectors * args.detector_cpus) + FILTER_CPUS + 2 * TASK_CPUS
    gpus = 0 if args.through else args.detectors * args.detector_gpus
    lower = "lower --loaders, --outliners, --worker-cpus, --detectors, --detector-cpus or --detector-gpus, or add a node"
    remedy = "add a node, or use jobs.batch_score, which needs none" if args.through else lower  # most of it is Ray Data's own
    for name, asked in (("CPU", cpus), ("GPU", gpus)):
        if asked > has.get(name, 0):
            raise InputsError(
                f"the workers ask for {asked:g} {name}s and the cluster has {has.get(name, 0):g}{' left' if args.through else ''}: {remedy}"
            )
