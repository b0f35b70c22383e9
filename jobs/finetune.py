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
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.training import augment, hooks, precision  # noqa: F401  (their transforms, hooks and wrappers register themselves)
from jobs.training.allocator import keep_freed_memory
from jobs.training.batch_norm import restore_batch_norms
from jobs.training.initial_weights import load_what_fits
from jobs.training.interruption import StopOnSignal, end_loaders, ending_on_signals
from jobs.training.runner import ConciseRunner
from jobs.training.runner_config import lasting_settings, runner_config, steps_an_epoch
from jobs.training.settings import FinetuneSettings, settings_from_args
from jobs.training.stopping import Diverged, step_of
from pipeline.errors import ServiceError
from pipeline.model.checkpoints import harmless_types_only, load_checkpoint, save_safetensors
from pipeline.model.spec import OFFICIAL_NAMES, ModelSpec, nano_spec, official_spec
from pipeline.model.zoo import locate

FINAL_NAME = "final.safetensors"
NEWEST_NAME = "last_checkpoint"
"""Where mmengine notes its newest checkpoint."""


def finetune(settings: FinetuneSettings) -> signal.Signals | None:
    """Train, and write the finished model file; returns the signal that ended the run early, if one did."""
    check_single_process()
    check_work_dir(settings.work_dir, resume=settings.resume)
    start = locate(settings.init_weights, setting="--init-weights") if settings.init_weights else None
    train = read_annotations(
        settings.train, settings.train_images, settings.work_dir / "train", training=True, strict=settings.strict
    )
    print(train.summary, flush=True)
    val = None
    if settings.val and settings.val_images:
        work, strict = settings.work_dir / "val", settings.strict
        val = read_annotations(settings.val, settings.val_images, work, training=True, classes=train.classes, strict=strict)
        print(val.summary, flush=True)
    if settings.val_every is None:
        settings = replace(settings, val_every=steps_an_epoch(settings, train) if val else 0)
    spec = spec_for(settings, train.classes)
    resume_from = checkpoint_to_resume(settings.work_dir, lasting_settings(settings, spec, train)) if settings.resume else None
    runner = ConciseRunner.from_cfg(runner_config(settings, spec, train, val, resume_from))
    network = runner.model
    network.init_weights()
    if start:
        print(load_what_fits(network, start, spec.classes), flush=True)
    elif not settings.resume:
        print("No --init-weights: the network starts from random weights, which takes far more photos and epochs.", flush=True)
    if settings.restore_batch_norm:
        batches = math.ceil(settings.restore_batch_norm / settings.batch_size)
        here = runner.cfg.train_dataloader | {"num_workers": 0, "persistent_workers": False}
        loader = runner.build_dataloader(here, seed=settings.seed)
        print(f"{restore_batch_norms(network, itertools.islice(loader, batches))} batch norms restored.", flush=True)
    trained = hooks.freeze(network, settings.freeze)
    hooks.check_layers(network, "--fix-batch-norm", settings.fix_batch_norm, batch_norms=True)
    print(f"{spec.name}: {trained:,} of {sum(p.numel() for p in network.parameters()):,} parameters train.", flush=True)
    precision.keep_losses_in_fp32(network)
    network.to(memory_format=torch.channels_last)
    with harmless_types_only(), ending_on_signals() as signals:
        runner.register_hook(StopOnSignal(signals))
        try:
            runner.train()
        except Diverged as error:
            raise ValueError(diverged(settings, runner.iter, error)) from error
        finally:
            end_loaders(runner)
        if runner.iter:
            export(settings.work_dir)
    if not signals or runner.iter == runner.max_iters:
        return None
    so_far = f"after {runner.iter:,} of {runner.max_iters:,} steps. --resume goes on"
    print(f"Stopped by {signals[0].name} {so_far if runner.iter else 'before the first step: nothing is saved'}.")
    return signals[0]


def check_single_process() -> None:
    """Raise ValueError under torchrun or mpirun: each of its processes would train the same run into the same folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but this command trains in one: start it with plain python."
        )


def diverged(settings: FinetuneSettings, step: int, error: Diverged) -> str:
    """What to say of a run whose loss is not finite, after the last good checkpoint was exported."""
    said = f"after {step} steps {error}: the training diverged. Try again with a lower --lr, such as {settings.lr / 10:g}"
    if _newest_checkpoint(settings.work_dir) is None:
        return f"{said}. No checkpoint was written before (--save-every {settings.save_every})."
    return f"{said}. {export(settings.work_dir)} has the last good checkpoint."


def check_work_dir(work_dir: Path, *, resume: bool) -> None:
    """Raise ValueError where a new run would mix its checkpoints with those of another."""
    if not resume and any((work_dir / name).exists() for name in (NEWEST_NAME, FINAL_NAME)):
        raise ValueError(f"--work-dir: {work_dir} holds a run already. --resume goes on with it; a new one needs another folder.")


def spec_for(settings: FinetuneSettings, classes: tuple[str, ...]) -> ModelSpec:
    """The network of the asked size, with the class channels of the training data."""
    if settings.model == "rtmdet-ins_nano":
        spec = nano_spec(classes, settings.image_size)
        name = settings.name or spec.name
    else:
        name = next(name for name in OFFICIAL_NAMES if name.startswith(settings.model + "_"))
        spec, name = official_spec(name).with_classes(classes), settings.name or settings.model
    return ModelSpec(name, spec.classes, settings.image_size, spec.config)


def checkpoint_to_resume(work_dir: Path, lasting: dict[str, Any]) -> Path:
    """A run's newest checkpoint. It brings network, optimizer and learning rates along, so a run with other settings cannot go on from it.

    Args:
        work_dir: of the run, also where it was moved since.
        lasting: `jobs.training.runner_config.lasting_settings` of this call.
    Raises:
        ValueError: there is no checkpoint, it cannot be read, or it is of a run with other settings.
    """
    newest = _newest_checkpoint(work_dir)
    if newest is None:
        raise ValueError(f"--resume: there is no checkpoint in {work_dir}. Leave --resume out to start from the beginning.")
    before = _read(newest).get("meta", {}).get("lasting", lasting)
    changed = [
        f"{option} {_told(before.get(option))} (now {_told(now)})" for option, now in lasting.items() if before.get(option) != now
    ]
    if changed:
        raise ValueError(
            f"--resume: {newest} is of a run with {', '.join(changed)}. Give what it had, or start a new run in another folder "
            f"with --init-weights {newest}."
        )
    return newest


def _newest_checkpoint(work_dir: Path) -> Path | None:
    pointer = work_dir / NEWEST_NAME
    newest = work_dir / Path(pointer.read_text().strip()).name if pointer.is_file() else None
    return newest if newest and newest.is_file() else None


def _told(value: object) -> str:
    return {True: "given", False: "left out"}[value] if isinstance(value, bool) else str(value)


def export(work_dir: Path) -> Path:
    """Write a run's best checkpoint, the newest where nothing was measured, as `final.safetensors`. Works while the run still goes on."""
    chosen, why = _newest_checkpoint(work_dir), ""
    if chosen is None:
        raise FileNotFoundError(f"{work_dir}: no checkpoint yet.")
    saved = _read(chosen)
    measured, lasting = saved.get("message_hub", {}).get("runtime_info", {}), saved.get("meta", {}).get("lasting", {})
    best = work_dir / Path(measured.get("best_ckpt", "")).name
    if measured.get("best_score", 0) > 0 and best.is_file():  # with 0 throughout the first one counts as the best
        chosen, why = best, f", the best measured (mask AP {measured['best_score']:.3f})"
    path = work_dir / FINAL_NAME
    save_safetensors(load_checkpoint(chosen), path)
    steps = step_of(chosen.name)
    print(f"{path}: written{f' after {steps} steps' if steps else ''}{why}.", flush=True)
    if lasting.get("--val") and not measured.get("best_score", 0) > 0:
        print("No measurement of --val has found anything so far: train for more steps, or with a higher --lr.", flush=True)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        with harmless_types_only():
            return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a whole checkpoint ({error}).") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    settings = settings_from_args(argv)
    keep_freed_memory()
    try:
        with known_warnings_ignored():
            stopped_by = finetune(settings)
    except KeyboardInterrupt:
        print("jobs.finetune: ended at once, nothing more is saved.", file=sys.stderr)
        return 128 + signal.SIGINT
    except (AnnotationsError, ServiceError, ValueError, OSError) as error:
        reason = str(error).rstrip().rsplit("\n", 1)[-1]  # a loader process sends its whole traceback in the message
        print(f"jobs.finetune: {reason.removeprefix('jobs.annotations.report.AnnotationsError: ')}", file=sys.stderr)
        return 2
    return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
