"""Measure a model: COCO box and mask AP, and AzureML's VOC-style metrics, on the same predictions.

    python -m jobs.evaluate --annotations val.json --images photos/ --checkpoint model.safetensors
    python -m jobs.evaluate --annotations val.json --images photos/ --checkpoint rtmdet-ins_nano_person --engine openvino
    python -m jobs.evaluate --annotations val.json --images photos/ --url http://127.0.0.1:8000
    python -m jobs.evaluate --annotations val.json --images photos/ --results results.json

Predictions come from `jobs.evaluation.predictions`, numbers from `jobs.evaluation.metrics_coco` and `metrics_azureml`.
Prints tables and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from jobs.annotations.datasets import Annotations, AnnotationsError, read_annotations
from jobs.annotations.report import ANNOTATIONS_HELP, STRICT_HELP
from jobs.atomic_write import atomic_file, write_atomically
from jobs.command_line import CommandFault, check_outputs, cli_errors, count, fraction
from jobs.evaluation.coco_results import CocoResults
from jobs.evaluation.metrics_azureml import IOU_THRESHOLD, SCORE_THRESHOLD, azureml_metrics
from jobs.evaluation.metrics_coco import coco_metrics
from jobs.evaluation.predictions import check_photos, check_sizes, predict_with_mmdet
from jobs.evaluation.predictions_served import predict_with_engine, predict_with_service
from jobs.evaluation.results_file import read_results
from jobs.evaluation.tables import as_table, write_confusion_plot
from jobs.photos import WHITE_LEVEL_HELP
from jobs.scoring.service_client import base_url, key_from
from jobs.training.loop.allocator import keep_freed_memory
from pipeline.inference.engine import EngineOptions, Precision
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate
from pipeline.types import COARSEST_STRIDE_PX


def measure(
    truth: dict[str, Any],
    predictions: CocoResults,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> dict[str, Any]:
    """Compute all metrics of one set of predictions: `{"images", "predictions", "crowds", "coco": {...}, "azureml": {...}}`.

    Args:
        score_threshold, iou_threshold: for AzureML's metrics; COCO's use all predictions and ten IoU thresholds.
    Raises:
        AnnotationsError: a photo is annotated in another size than it was scored in.
    """
    check_sizes(truth, predictions)
    return {
        "images": len(truth["images"]),
        "predictions": len(predictions),
        "crowds": sum(bool(found.get("iscrowd")) for found in truth["annotations"]),
        "coco": coco_metrics(truth, predictions),
        "azureml": azureml_metrics(truth, predictions, score_threshold, iou_threshold),
    }


@cli_errors("jobs.evaluate", AnnotationsError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = _parser()
    options = parser.parse_args(argv)
    by_mmdet = options.checkpoint and options.engine == "mmdet"
    if options.image_size and not by_mmdet:
        parser.error("--image-size goes with --checkpoint and --engine mmdet; engines take the model's")
    if options.image_size and options.image_size % COARSEST_STRIDE_PX:
        parser.error(f"--image-size must be a multiple of {COARSEST_STRIDE_PX} px, got {options.image_size}")
    if options.precision != "auto" and (by_mmdet or not options.checkpoint):
        parser.error("--precision goes with --checkpoint and --engine openvino or torch; mmdet computes in fp32")
    check_outputs(
        {"--save-results": options.save_results, "--output": options.output, "--plot": options.plot},
        {"--annotations": options.annotations, "--results": options.results, "--checkpoint": options.checkpoint},
    )
    keep_freed_memory()
    if options.checkpoint:
        options.checkpoint = locate(options.checkpoint, setting="--checkpoint")
    for file in filter(None, (options.save_results, options.output, options.plot)):  # hours before they are written
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        annotations = read_annotations(options.annotations, options.images, Path(scratch), strict=options.strict)
        print(annotations.summary, file=sys.stderr, flush=True)
        truth = annotations.document()
        if not options.results:
            check_photos(annotations, truth)
        predictions = _predict(options, annotations, truth)
    if options.save_results:
        write_atomically(options.save_results, json.dumps(predictions))
    metrics = measure(truth, predictions, options.score_threshold, options.iou_threshold)
    metrics["annotations"] = annotations.report.as_json()
    print(as_table(metrics))
    if options.plot:
        with atomic_file(options.plot) as draft:
            write_confusion_plot(metrics["azureml"], draft)
    if options.output:
        write_atomically(options.output, json.dumps(metrics, indent=1))
    print(json.dumps(metrics))
    return 0


def _predict(options: argparse.Namespace, annotations: Annotations, truth: dict[str, Any]) -> CocoResults:
    if options.results:
        return read_results(options.results, truth)
    if options.url:
        return predict_with_service(options.url, annotations, key=options.key_env)
    if options.engine != "mmdet":
        engine = EngineOptions(options.engine, options.precision)
        return predict_with_engine(str(options.checkpoint), engine, annotations, options.white_level)
    try:
        return predict_with_mmdet(load_checkpoint(options.checkpoint), annotations, options.image_size, options.white_level)
    except torch.OutOfMemoryError as error:
        raise CommandFault(
            f"The GPU's memory is too small for one photo: a smaller --image-size needs less, or use the CPU with CUDA_VISIBLE_DEVICES= "
            f"({str(error).splitlines()[0]})"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description="Measure box and mask accuracy.")
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help=ANNOTATIONS_HELP)
    add("--images", type=Path, required=True, help="folder of the photos")
    add("--strict", action="store_true", help=STRICT_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint", help="model to run: a name from `python -m pipeline.model.zoo list`, or a .pth or .safetensors file"
    )
    source.add_argument("--url", type=base_url, help="base URL of a running service, such as http://127.0.0.1:8000")
    source.add_argument("--results", type=Path, help="COCO results JSON with existing predictions")
    add("--key-env", type=key_from, metavar="NAME", help="environment variable that holds the service's key")
    add(
        "--engine",
        choices=["mmdet", "openvino", "torch"],
        default="mmdet",
        help="engine for --checkpoint (default: mmdet's own test code)",
    )
    add("--precision", choices=get_args(Precision), default="auto", help="for the engines openvino and torch")
    add("--white-level", type=count, help=f"with --checkpoint: {WHITE_LEVEL_HELP}")
    add("--image-size", type=count, help="side of the square network input, pixels; for mmdet only (default: the model's)")
    add(
        "--score-threshold",
        type=fraction,
        default=SCORE_THRESHOLD,
        help="for AzureML's metrics (default: %(default)s, as in AzureML)",
    )
    add(
        "--iou-threshold",
        type=fraction,
        default=IOU_THRESHOLD,
        help="for AzureML's metrics (default: %(default)s, as in AzureML)",
    )
    add("--plot", type=Path, help="write the confusion matrix to this PNG file")
    add("--save-results", type=Path, help="write the predictions as COCO results JSON")
    add("--output", type=Path, help="write the metrics as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
