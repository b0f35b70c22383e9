"""Score a large batch on a Ray cluster with Ray Data: every stage on its own workers, without HTTP.

    python -m jobs.batch_ray photos/ --output scored/ --model rtmdet-ins_nano_person
    python -m jobs.batch_ray s3://bucket/photos --output s3://bucket/scored --model my.safetensors --detector-gpus 1 --detectors 8
    python -m jobs.batch_ray photos.parquet --output scored/ --through rtmdet-ins

    source ─▶ list ─▶ Load (CPUs) ─▶ Detect (GPUs or CPUs) ─▶ Outline (CPUs) ─▶ OUTPUT/rows/*.parquet
                      or all three by the handle of a running application (--through)

A row has AzureML's columns `row_number_per_file`, `preds` (JSON) and `file_name`, and `id`. For a bad photo, `preds` holds an error. A
photo that cannot be read because the storage fails has no row: the exit status is 1, and the same command tries it again.
--coco writes OUTPUT/coco_results.json as well. --mini-batch-size, --error-threshold and --max-retries are AzureML's batch settings.
After an interruption, the same command continues without losing or repeating photos: Ray Data records which ids are in which file
(OUTPUT/checkpoint). Memory does not grow with the batch. `jobs.batch_score` needs no cluster and sends the photos to a service
over HTTP. Exit status: 1 if more photos failed than --error-threshold allows, none was scored, or some have no row; 2 for wrong
arguments or input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from jobs.command_line import amount, cli_errors, count, count_from_0, fraction
from jobs.photos import WHITE_LEVEL_HELP
from jobs.scoring.tables import InputsError
from jobs.scoring.tiles import MAX_OVERLAP
from pipeline.inference.engine import Precision


@cli_errors("jobs.batch_ray")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not (args.source and args.output):
        parser.error("the source and --output must not be empty")
    if "?" in args.output:
        parser.error("--output: Ray Data takes what follows a ? for a query; name a folder without one")
    if args.through and args.tiles > 1:
        parser.error("--tiles does not go with --through: the application cuts no tiles")
    if args.overlap > MAX_OVERLAP:
        parser.error(f"--overlap is at most {MAX_OVERLAP}")
    if args.coco:
        args.mask_format = "rle"
    try:
        import ray.data  # noqa: F401
        from pyarrow import parquet  # noqa: F401
    except ImportError as error:
        print(f"jobs.batch_ray: Ray Data is not installed ({error}): .venv/bin/pip install -e '.[cluster]'", file=sys.stderr)
        return 2
    from jobs.scoring.cluster_run import run

    try:
        return run(args)
    except InputsError as error:
        print(f"jobs.batch_ray: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.batch_ray", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "source",
        help="folder, here or s3://, gs://, abfs://; CSV, JSON lines or MLTable here; Parquet, a file or a folder of them, with columns "
        "`id`, different in each row, and `image` (bytes, base64, URLs or whole paths)",
    )
    add("--output", required=True, help="folder, on storage that every node can access: rows/, checkpoint/, photos.parquet")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--model", default="rtmdet-ins_nano_person", help="name or path, the same on every node (default: %(default)s)"
    )
    how.add_argument(
        "--through", metavar="APPLICATION", help="instead of --model: score with this running application, by its handle"
    )
    add("--format", choices=["parquet", "jsonl"], default="parquet", help="format of the files in rows/ (default: %(default)s)")
    add("--mini-batch-size", type=count, default=32, help="photos per task of loading or outlining (default: %(default)s)")
    add("--error-threshold", type=int, default=-1, help="most photos that may fail; -1: any number (default: %(default)s)")
    add("--max-retries", type=count_from_0, default=3, help="retries of a mini batch whose worker died (default: %(default)s)")
    add("--detectors", type=count, default=1, help="workers that run the network (default: %(default)s)")
    add("--detector-gpus", type=amount, default=0, help="GPUs of each detector; 0: run on CPUs (default: %(default)s)")
    add(
        "--detector-cpus",
        type=amount,
        default=0.5,
        help="CPUs of each detector, and its number of threads (default: %(default)s)",
    )
    add("--detector-batch", type=count, default=8, help="photos in one pass of the network (default: %(default)s)")
    add("--engine", choices=["auto", "openvino", "torch", "simulated"], default="auto", help="(default: %(default)s)")
    add("--precision", choices=get_args(Precision), default="auto", help="(default: %(default)s)")
    add("--loaders", type=count, default=2, help="workers that decode photos (default: %(default)s)")
    add("--outliners", type=count, default=1, help="workers that trace polygons (default: %(default)s)")
    add("--worker-cpus", type=amount, default=0.1, help="CPUs of each loader and outliner (default: %(default)s)")
    add("--white-level", type=count, help=f"with --model: {WHITE_LEVEL_HELP}")
    add("--score-threshold", type=fraction, default=0.3, help="keep objects with a score above this (default: %(default)s)")
    add("--mask-format", choices=["polygon", "rle"], default="polygon", help="(default: %(default)s)")
    add("--tiles", type=count, default=1, help="for small objects: also score tiles of the photo, so many along its long side")
    add("--overlap", type=fraction, default=0.2, help="of neighbouring tiles, share of a tile (default: %(default)s)")
    add(
        "--coco",
        type=Path,
        metavar="ANNOTATIONS",
        help="also write OUTPUT/coco_results.json, with the ids of photos (by file name) and labels of this COCO file; masks are RLE then",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
