"""Averages the weights of a model before and after fine-tuning, to keep the accuracy of both.

    python -m benchmarks.embedded_model.merge --base start.safetensors --tuned final.safetensors --share 0.5 \\
        --train train.json --train-images photos/ --out merged.safetensors

A model fine-tuned on a thousand photos forgets some of what tens of thousands had taught it. Between both sets of weights
the accuracy is often above either end. Measured for rtmdet-ins_nano_person in `pipeline/model/weights/rtmdet-ins_nano_person.md`.
The averaged network's batch-norm statistics are measured anew on training photos.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv 2109.01903).
"""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from benchmarks.embedded_model.batch_norm import measure_batch_norms, restore_batch_norms
from jobs.annotations.datasets import read_annotations
from jobs.command_line import cli_errors
from jobs.training.loop.allocator import keep_freed_memory
from jobs.training.network.layers import check_layers, layers_of
from jobs.training.runner_config import train_loader
from jobs.training.settings import FinetuneSettings
from pipeline.errors import CheckpointError
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors

MOSAIC_SHARE = 0.2
BATCH_SIZE = 8
MAX_NAMED = 5


def merge(
    base: Checkpoint,
    tuned: Checkpoint,
    tuned_share: float,
    batches: list[Any],
    only_tuned: Sequence[str] = (),
    restore: bool = False,
) -> Checkpoint:
    """Weights between those of `base` and those of `tuned`, with batch-norm statistics of these photos.

    Args:
        base: the model that the fine-tuning started from; the same network, but for `only_tuned`.
        tuned: the model it gave.
        tuned_share: 0 gives base, 1 gives tuned.
        batches: samples as mmdet's data loader gives them; a hundred photos are enough.
        only_tuned: name prefixes of layers that are taken from `tuned` alone, such as those that started fresh.
        restore: measure base's batch-norm statistics first, as the fine-tuning did (`benchmarks.embedded_model.batch_norm`).
    Raises:
        CheckpointError: the two are different networks.
        ValueError: `only_tuned` names no layer.
    """
    start, network, new = base.network(), tuned.network(), tuned.state_dict
    check_layers(network, "--only-tuned", only_tuned)
    if restore:
        restore_batch_norms(start, batches)
    old = start.state_dict()
    shared = [name for name in new if not (only_tuned and name.startswith(tuple(only_tuned)))]
    apart = [name for name in shared if name not in old or old[name].shape != new[name].shape]
    if apart:
        named = ", ".join(layers_of(apart)[:MAX_NAMED])
        raise CheckpointError(
            f"{base.spec.name} and {tuned.spec.name} differ in {named}: nothing to average there. Layers that started fresh, because "
            "the classes are others, go to --only-tuned."
        )
    network.load_state_dict(
        {name: old[name].lerp(new[name], tuned_share) for name in shared if new[name].is_floating_point()}, strict=False
    )
    measure_batch_norms(network, batches)
    return Checkpoint(tuned.spec, network.state_dict())


def training_batches(options: argparse.Namespace, scratch: Path, checkpoint: Checkpoint) -> Iterator[Any]:
    """Augmented training photos, as the fine-tuning saw them; options of `add_photos`."""
    settings = FinetuneSettings(
        train=options.train,
        train_images=options.train_images,
        work_dir=scratch,
        steps=1000,
        batch_size=BATCH_SIZE,
        image_size=options.image_size,
        mosaic=MOSAIC_SHARE,
        workers=0,
        seed=options.seed,
    )
    annotations = read_annotations(options.train, options.train_images, scratch, training=True)
    init_default_scope("mmdet")
    loader = Runner.build_dataloader(train_loader(settings, checkpoint.spec, annotations), seed=options.seed)
    return itertools.islice(loader, math.ceil(options.photos / BATCH_SIZE))


@cli_errors("benchmarks.embedded_model.merge", ValueError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not 0 <= options.share <= 1 or options.photos < 1 or options.image_size < 32 or options.image_size % 32:
        parser.error("--share is 0 to 1, --photos 1 or more, --image-size a multiple of 32.")
    if options.out.suffix != ".safetensors" or not options.out.parent.is_dir():
        parser.error(f"--out is a .safetensors file in a folder that exists, got {options.out}.")
    keep_freed_memory()
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch, known_warnings_ignored():
        base, tuned = load_checkpoint(options.base), load_checkpoint(options.tuned)
        batches = list(training_batches(options, Path(scratch), tuned))
        merged = merge(base, tuned, options.share, batches, options.only_tuned, options.restore_batch_norm)
        save_safetensors(merged, options.out)
    print(f"{options.out}: {options.share:.0%} tuned, statistics of {len(batches) * BATCH_SIZE} samples.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded_model.merge", description="Average a model before and after fine-tuning."
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, help="model before fine-tuning (.pth or .safetensors)")
    add("--tuned", type=Path, required=True, help="model after fine-tuning")
    add("--share", type=float, default=0.5, help="share of the tuned weights, 0..1")
    add("--only-tuned", nargs="*", default=[], metavar="LAYER", help="layers taken from the tuned model alone")
    add("--restore-batch-norm", action="store_true", help="first measure base's statistics, if the fine-tuning did so")
    add("--out", type=Path, required=True, help="merged model, .safetensors")
    add_photos(parser)
    return parser


def add_photos(parser: argparse.ArgumentParser) -> None:
    """Options: on which training photos statistics are measured."""
    add = parser.add_argument
    add("--train", type=Path, required=True, help="annotations of training photos: COCO JSON or AzureML JSONL")
    add("--train-images", type=Path, required=True, help="folder of their photos")
    add("--photos", type=int, default=160, help="training photos to measure batch-norm statistics on, in batches of 8")
    add("--image-size", type=int, default=640, help="side of the square samples, px")
    add("--seed", type=int, default=0)


if __name__ == "__main__":
    sys.exit(main())
