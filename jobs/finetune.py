"""Fine-tune an RTMDet-Ins model on your photos.

    python -m jobs.finetune --train train.json --train-images photos/ --val val.json --val-images photos/ \
        --model rtmdet-ins_nano --init-weights start.pth --epochs 20 --batch-size 8 --lr 5e-4 --work-dir runs/mine

mmdet's transforms, losses and mmengine's Runner do the training; this file only puts them together. The result is
`<work-dir>/final.safetensors` (and mmengine's own `iter_*.pth`): averaged weights, classes and configuration in one file. With --val
they are those with the best mask AP. Ctrl-C or SIGTERM ends a run early, with the same result and exit status 128 + signal; --resume
goes on with it.
"""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import itertools
import math
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint
from torch import nn

from jobs import augment, hooks, precision  # noqa: F401  (their transforms, hooks and wrappers register themselves)
from jobs.batch_norm import restore_batch_norms
from jobs.datasets import AnnotationsError, read_annotations
from jobs.runner_config import runner_config, steps_an_epoch, training_steps
from jobs.settings import FinetuneSettings, settings_from_args
from pipeline.allocator import keep_freed_memory
from pipeline.checkpoints import harmless_types_only, load_checkpoint, load_weights, save_safetensors
from pipeline.errors import ServiceError
from pipeline.model import OFFICIAL_NAMES, ModelSpec, nano_spec, official_spec
from pipeline.zoo import locate

FINAL_NAME = "final.safetensors"


def finetune(settings: FinetuneSettings) -> signal.Signals | None:
    """Train, and write the finished model file; returns the signal that ended the run early, if one did."""
    train = read_annotations(settings.train, settings.train_images, settings.work_dir / "train", training=True)
    print(train.summary, flush=True)
    val = None
    if settings.val and settings.val_images:
        val = read_annotations(settings.val, settings.val_images, settings.work_dir / "val", training=True, classes=train.classes)
        print(val.summary, flush=True)
    if settings.val_every is None:
        settings = replace(settings, val_every=steps_an_epoch(settings, train) if val else 0)
    if settings.resume:
        check_resume(settings.work_dir, training_steps(settings, train))
    spec = spec_for(settings, train.classes)
    runner = Runner.from_cfg(runner_config(settings, spec, train, val))
    network = runner.model
    network.init_weights()
    if settings.init_weights:
        print(load_what_fits(network, locate(settings.init_weights)))
    elif not settings.resume:
        print("No --init-weights: the network starts from random weights, which takes far more photos and epochs.", flush=True)
    if settings.restore_batch_norm:
        batches = math.ceil(settings.restore_batch_norm / settings.batch_size)
        here = runner.cfg.train_dataloader | {"num_workers": 0, "persistent_workers": False}
        loader = runner.build_dataloader(here, seed=settings.seed)
        print(f"{restore_batch_norms(network, itertools.islice(loader, batches))} batch norms restored.")
    trained = hooks.freeze(network, settings.freeze)
    hooks.check_layers(network, "--fix-batch-norm", settings.fix_batch_norm)
    print(f"{spec.name}: {trained:,} of {sum(p.numel() for p in network.parameters()):,} parameters train.", flush=True)
    precision.keep_losses_in_fp32(network)
    network.to(memory_format=torch.channels_last)
    with harmless_types_only(), hooks.ending_on_signals(runner) as signals:
        runner.train()
    if runner.iter:
        export(settings.work_dir)
    if signals:
        print(f"Stopped by {signals[0].name} after {runner.iter:,} of {runner.max_iters:,} steps. --resume goes on.")
    return signals[0] if signals else None


def spec_for(settings: FinetuneSettings, classes: tuple[str, ...]) -> ModelSpec:
    """The network of the asked size, with the class channels of the training data."""
    if settings.model == "rtmdet-ins_nano":
        spec = nano_spec(classes, settings.image_size)
        name = settings.name or spec.name
    else:
        name = next(name for name in OFFICIAL_NAMES if name.startswith(settings.model + "_"))
        spec, name = official_spec(name).with_classes(classes), settings.name or settings.model
    return ModelSpec(name, spec.classes, settings.image_size, spec.config)


def load_what_fits(network: nn.Module, path: Path) -> str:
    """Copy every weight of the file whose name and shape the network has.

    Returns: one line that says how many were loaded and which parts start fresh.
    Raises: ValueError where nothing fits.
    """
    weights, own = load_weights(path), network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(f"{path}: none of its {len(weights)} tensors fits this network. Is --model right?")
    network.load_state_dict(fitting, strict=False)
    fresh = sorted({".".join(name.split(".")[:2]) for name in own if name not in fitting and "num_batches" not in name})
    return f"{path.name}: {len(fitting)} of {len(own)} tensors loaded; fresh: {', '.join(fresh) or 'none'}."


def check_resume(work_dir: Path, steps: int) -> None:
    """Only a run of the same length goes on as it would have: the checkpoint brings its learning rate schedule along.

    Raises: ValueError where there is no checkpoint, or one of a run of another length.
    """
    newest = find_latest_checkpoint(str(work_dir))
    if newest is None or not Path(newest).is_file():
        raise ValueError(f"--resume: there is no checkpoint in {work_dir}. Leave --resume out to start from the beginning.")
    before = _read(Path(newest)).get("meta", {}).get("training_steps", steps)
    if before != steps:
        raise ValueError(
            f"--resume: {newest} is of a run of {before:,} steps, and this one would be {steps:,} steps long; its learning rate "
            f"has fallen for {before:,}. Keep the length (--steps {before}), or start a new run with --init-weights {newest}."
        )


def export(work_dir: Path) -> Path:
    """Write a run's best checkpoint, the newest where nothing was measured, as `final.safetensors`. Works while the run still goes on."""
    newest = find_latest_checkpoint(str(work_dir))
    if newest is None:
        raise FileNotFoundError(f"{work_dir}: no checkpoint yet.")
    chosen, why = Path(newest), ""
    measured = _read(chosen).get("message_hub", {}).get("runtime_info", {})
    best = work_dir / Path(measured.get("best_ckpt", "")).name
    if best.is_file():
        chosen, why = best, f", the best measured (mask AP {measured['best_score']:.3f})"
    path = work_dir / FINAL_NAME
    save_safetensors(load_checkpoint(chosen), path)
    steps = re.search(r"iter_(\d+)", chosen.name)
    print(f"{path}: written{f' after {steps[1]} steps' if steps else ''}{why}.")
    return path


def _read(path: Path) -> dict[str, Any]:
    with harmless_types_only():
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    settings = settings_from_args(argv)
    keep_freed_memory()
    try:
        with known_warnings_ignored():
            stopped_by = finetune(settings)
    except (AnnotationsError, ServiceError, ValueError) as error:
        reason = str(error).rstrip().rsplit("\n", 1)[-1]  # a loader process sends its whole traceback in the message
        print(f"jobs.finetune: {reason.removeprefix('jobs.coco_file.AnnotationsError: ')}", file=sys.stderr)
        return 2
    return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
