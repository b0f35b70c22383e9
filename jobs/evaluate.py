"""Measure a model: COCO box and mask AP, and AzureML's VOC-style metrics, on the same predictions.

    python -m jobs.evaluate --annotations val.json --images photos/ --checkpoint model.safetensors
    python -m jobs.evaluate --annotations val.json --images photos/ --checkpoint rtmdet-ins_nano_person --engine openvino
    python -m jobs.evaluate --annotations val.json --images photos/ --url http://127.0.0.1:8000
    python -m jobs.evaluate --annotations val.json --images photos/ --results results.json

Predictions come from `jobs.evaluation.predictions`, numbers from `jobs.evaluation.metrics_coco` and `metrics_voc`.
Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jobs.annotations.datasets import Annotations, AnnotationsError, read_annotations
from jobs.command_line import cli_errors
from jobs.evaluation.metrics_coco import STATISTICS, coco_metrics
from jobs.evaluation.metrics_voc import voc_metrics
from jobs.evaluation.predictions import CocoResults, check_photos, check_sizes, predict_with_mmdet, read_results
from jobs.evaluation.predictions_served import predict_with_engine, predict_with_service
from jobs.scoring.service_client import base_url, key_from
from jobs.training.allocator import keep_freed_memory
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate


def measure(truth: dict[str, Any], predictions: CocoResults) -> dict[str, Any]:
    """All metrics of one set of predictions: `{"images", "predictions", "crowds", "coco": {...}, "voc50": {...}}`.

    Raises:
        AnnotationsError: a photo was annotated in another size than it was scored in.
    """
    check_sizes(truth, predictions)
    return {
        "images": len(truth["images"]),
        "predictions": len(predictions),
        "crowds": sum(bool(found.get("iscrowd")) for found in truth["annotations"]),
        "coco": coco_metrics(truth, predictions),
        "voc50": {"box": voc_metrics(truth, predictions, over="box"), "mask": voc_metrics(truth, predictions, over="mask")},
    }


def as_table(metrics: dict[str, Any]) -> str:
    """The numbers for people: one row for boxes, one for masks, in per cent."""
    azure = ("mean_average_precision", "precision", "recall")
    heads = ["", *STATISTICS, "voc50 mAP", "precision", "recall"]
    rows = [heads]
    for kind in ("box", "mask"):
        numbers = [metrics["coco"][kind][name] for name in STATISTICS] + [metrics["voc50"][kind][name] for name in azure]
        rows.append([kind, *map(_per_cent, numbers)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    per_label = metrics["coco"]["mask"]["per_label"]
    if len(per_label) > 1:
        longest = max(map(len, per_label))
        lines += ["mask AP by label", *(f"  {name.ljust(longest)}  {_per_cent(ap).rjust(5)}" for name, ap in per_label.items())]
    if not metrics["predictions"]:
        lines.append("nothing was found: there is not one prediction")
    if metrics["crowds"]:
        lines.append(
            f"voc50 is AzureML's rule: whoever stands within a crowd's box counts as on the crowd ({metrics['crowds']} here)"
        )
    return "\n".join(lines)


def _per_cent(number: float | None) -> str:
    return "-" if number is None else f"{100 * number:.1f}"


@cli_errors("jobs.evaluate", AnnotationsError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    options = _parser().parse_args(argv)
    keep_freed_memory()
    if options.checkpoint:
        options.checkpoint = locate(options.checkpoint, setting="--checkpoint")
    for file in filter(None, (options.save_results, options.output)):  # hours before they are written
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        annotations = read_annotations(options.annotations, options.images, Path(scratch))
        truth = json.loads(annotations.coco_json.read_text())
        if not options.results:
            check_photos(annotations, truth)
        predictions = _predict(options, annotations)
    if options.save_results:
        options.save_results.write_text(json.dumps(predictions))
    metrics = measure(truth, predictions)
    print(as_table(metrics))
    if options.output:
        options.output.write_text(json.dumps(metrics, indent=1))
    print(json.dumps(metrics))
    return 0


def _predict(options: argparse.Namespace, annotations: Annotations) -> CocoResults:
    if options.results:
        return read_results(options.results)
    bar = functools.partial(tqdm, unit="photo", disable=not sys.stderr.isatty())
    if options.url:
        return predict_with_service(options.url, annotations, bar, key=options.key_env)
    if options.engine != "mmdet":
        return predict_with_engine(str(options.checkpoint), EngineOptions(options.engine, options.precision), annotations, bar)
    return predict_with_mmdet(load_checkpoint(options.checkpoint), annotations, options.image_size, bar)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description="Measure box and mask accuracy.")
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO JSON, or AzureML annotations JSONL (*.jsonl)")
    add("--images", type=Path, required=True, help="folder of the photos")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint", help="model to run: a name that `python -m pipeline.model.zoo list` knows, or .pth or .safetensors"
    )
    source.add_argument("--url", type=base_url, help="a running service, e.g. http://127.0.0.1:8000")
    source.add_argument("--results", type=Path, help="predictions made elsewhere, COCO results JSON")
    add("--key-env", type=key_from, metavar="NAME", help="environment variable that holds the service's key")
    add(
        "--engine", choices=["mmdet", "openvino", "torch"], default="mmdet", help="what runs --checkpoint (default: mmdet itself)"
    )
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="of openvino and torch")
    add("--image-size", type=int, help="side of the square input, px, for mmdet (default: the model's own)")
    add("--save-results", type=Path, help="write the predictions as COCO results JSON")
    add("--output", type=Path, help="write the metrics as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
