"""Runs a batch on a cluster, from the list of photos to the rows; see `jobs.batch_ray`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from pyarrow import fs as pafs
from ray import serve
from ray.data import ActorPoolStrategy
from ray.data.checkpoint import CheckpointConfig

from jobs.batch_ray import CACHE, Progress
from jobs.scoring.batch_inputs import InputsError
from jobs.scoring.cluster_coco import CocoWriter
from jobs.scoring.cluster_inputs import (
    FILE_NAME,
    ID,
    IMAGE,
    ROW,
    count_rows,
    filesystem_of,
    image_column,
    list_photos,
    parquet_files,
)
from jobs.scoring.cluster_stages import Detect, Load, Outline, Tally
from jobs.scoring.cluster_through import Through
from jobs.scoring.tiles import Grid
from pipeline.inference.engine import EngineOptions
from pipeline.model.zoo import read_header
from pipeline.types import DetectOptions, OutlineOptions

TASK_CPUS = 0.1
"""CPUs of a task that reads or writes rows; it mostly waits."""
FILTER_CPUS = 1
"""CPUs of Ray Data's actor that filters finished photos."""
NAMED_ERRORS = ("TooManyErrors", "CallRefused")
"""Errors of our stages that are printed without a traceback."""


def run(args: argparse.Namespace) -> int:
    """Score what has no row yet; returns the exit status.

    Raises:
        InputsError: the source or the output cannot be used.
    """
    output = args.output.rstrip("/") if "://" in args.output else str(Path(args.output).resolve())
    coco = CocoWriter(args.coco) if args.coco else None
    filesystem, folder = filesystem_of(output)
    _check_made_by(output, args)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, namespace="serve")
    if args.through:
        _check_application(args.through)
    _check_room(args)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        ID, f"{folder}/checkpoint", delete_checkpoint_on_success=False, override_filesystem=filesystem
    )
    context.use_datasource_v2 = False  # its listing takes a whole CPU, whatever the read is given
    total, photos = _photos(args, output)
    before = count_rows(f"{output}/checkpoint")
    tally = Tally.remote(args.error_threshold)  # type: ignore[attr-defined]
    CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES = 0  # a GB reserved for each by default: more than small nodes have
    progress = Progress(tally, total, before)
    progress.start()
    try:
        rows = _through(photos, args, tally) if args.through else _staged(photos, args, tally)
        write = rows.write_parquet if args.format == "parquet" else rows.write_json
        write(f"{folder}/rows", filesystem=filesystem, ray_remote_args={"num_cpus": TASK_CPUS})
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        if said := next((line for line in str(error).splitlines()[::-1] if any(name in line for name in NAMED_ERRORS)), None):
            print(f"jobs.batch_ray: stopped: {said.partition(': ')[2]}", file=sys.stderr)
            return 1
        raise
    finally:
        progress.stop()
    print(progress.line())
    if coco:
        print(coco.write(output, args.format))
    done, errors, first = ray.get(tally.counts.remote())
    if done and done == errors and not before:
        print(f"jobs.batch_ray: not one of {done:,} photos could be scored; the first: {first}", file=sys.stderr)
        return 1
    return 0


def _check_made_by(output: str, args: argparse.Namespace) -> None:
    """What an earlier run into this folder was told must be what this one is told; else its rows would be mixed with others."""
    facts = {
        name: getattr(args, name)
        for name in ("source", "through", "format", "score_threshold", "mask_format", "tiles", "overlap", "white_level")
    }
    facts["model"] = None if args.through else args.model
    filesystem, folder = filesystem_of(output)
    place = f"{folder}/run.json"
    if filesystem.get_file_info(place).type == pafs.FileType.File:
        earlier = json.loads(filesystem.open_input_stream(place).read())
        if apart := [name for name in facts if earlier.get(name) != facts[name]]:
            told = "; ".join(f"{name} was {earlier.get(name)!r}, is now {facts[name]!r}" for name in apart)
            raise InputsError(f"{output} holds rows that were made otherwise: {told}. Take another --output")
        return
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(place) as stream:
        stream.write(json.dumps(facts, indent=1).encode())


def _photos(args: argparse.Namespace, output: str) -> tuple[int, Any]:
    """How many photos there are, and a dataset of them with the columns of the list."""
    if files := parquet_files(args.source):
        column, (filesystem, _) = image_column(args.source), filesystem_of(args.source)
        dataset = ray.data.read_parquet(files, filesystem=filesystem, columns=[ID, column], num_cpus=TASK_CPUS)
        named = dataset.map_batches(partial(_named_by_id, column=column), batch_size=args.mini_batch_size, num_cpus=TASK_CPUS)
        return count_rows(args.source), named
    manifest = f"{output}/photos.parquet"
    total = count_rows(manifest) or list_photos(args.source, manifest)
    filesystem, path = filesystem_of(manifest)
    return total, ray.data.read_parquet(path, filesystem=filesystem, num_cpus=TASK_CPUS)


def _staged(photos: Any, args: argparse.Namespace, tally: Any) -> Any:
    cache = CACHE.expanduser()
    header = read_header(args.model, cache)
    gpus = {"num_gpus": args.detector_gpus} if args.detector_gpus else {}
    engine = EngineOptions(
        args.engine,
        args.precision,
        threads=max(round(args.detector_cpus), 1),
        max_batch=args.detector_batch,
        cache_dir=cache,
    )
    restarts = _restarts(args)
    worker = {"num_cpus": args.worker_cpus, "ray_remote_args_fn": restarts}
    loaded = photos.map_batches(
        Load,
        fn_constructor_args=(header.input_size, Grid(args.tiles, args.overlap, header.input_size) if args.tiles > 1 else None),
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
        ray_remote_args_fn=restarts,
        **gpus,
    )
    return detected.map_batches(
        Outline,
        fn_constructor_args=(header.classes, OutlineOptions(mask_format=args.mask_format), tally),
        batch_size=args.mini_batch_size,
        compute=ActorPoolStrategy(size=args.outliners),
        **worker,
    )


def _through(photos: Any, args: argparse.Namespace, tally: Any) -> Any:
    params = {"score_threshold": args.score_threshold, "mask_format": args.mask_format}
    return photos.map_batches(
        Through,
        fn_constructor_args=(args.through, params, tally),
        batch_size=args.mini_batch_size,
        compute=ActorPoolStrategy(size=args.loaders),
        num_cpus=args.worker_cpus,
        ray_remote_args_fn=_restarts(args),
    )


def _check_application(name: str) -> None:
    """Raise InputsError unless this application runs in the cluster."""
    applications = serve.status().applications
    if name not in applications or applications[name].status != "RUNNING":
        there = ", ".join(f"{other} ({told.status.value})" for other, told in applications.items()) or "none"
        raise InputsError(f"--through {name}: no such application runs in this cluster (RAY_ADDRESS); there is: {there}")


def _restarts(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    return lambda: {"max_restarts": args.max_retries, "max_task_retries": args.max_retries}


def _check_room(args: argparse.Namespace) -> None:
    """Check that the cluster has room for the workers: Ray would let them wait for ever without a message.

    Raises:
        InputsError: the workers need more than the cluster has.
    """
    has = ray.available_resources() if args.through else ray.cluster_resources()  # the application keeps what it has
    workers = (args.loaders + (0 if args.through else args.outliners)) * args.worker_cpus
    cpus = workers + (0 if args.through else args.detectors * args.detector_cpus) + FILTER_CPUS + 2 * TASK_CPUS
    gpus = 0 if args.through else args.detectors * args.detector_gpus
    for name, asked in (("CPU", cpus), ("GPU", gpus)):
        if asked > has.get(name, 0):
            raise InputsError(
                f"the workers ask for {asked:g} {name}s and the cluster has {has.get(name, 0):g}{' left' if args.through else ''}: "
                "lower --loaders, --outliners, "
                "--worker-cpus, --detectors, --detector-cpus or --detector-gpus"
            )


def _named_by_id(batch: dict[str, Any], column: str) -> dict[str, Any]:
    """Rows of a Parquet source to those of the list; `column` holds the images."""
    ids = batch[ID]
    return {ID: ids, FILE_NAME: ids.astype(str), ROW: [0] * len(ids), IMAGE: batch[column]}
