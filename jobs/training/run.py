"""One training run, from its settings to the exported model; puts together the parts of this package."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank

from jobs.annotations.datasets import Annotations, read_annotations
from jobs.training.data.photo_check import check_photos, copies_within
from jobs.training.data.split import write_split
from jobs.training.loop.batch_size import choose_batch_size
from jobs.training.loop.saving import step_of
from jobs.training.loop.stopping import StopOnSignal, end_loaders, ending_on_signals
from jobs.training.loop.validation import check_defined
from jobs.training.network import layers, losses, precision
from jobs.training.network.initial_weights import load_what_fits
from jobs.training.output.console import ConciseRunner, initialise_silently, too_little_movement, what_next
from jobs.training.output.results import (
    check_work_dir,
    checkpoint_to_resume,
    claimed,
    export,
    newest_checkpoint,
    photos_a_step_before,
)
from jobs.training.runner_config import (
    lasting_settings,
    photos_a_step,
    runner_config,
    steps_an_epoch,
    train_loader,
    training_steps,
    validation_interval,
)
from jobs.training.settings import AUTO_BATCH, RANDOM_WEIGHTS, FinetuneSettings
from pipeline.inference.devices import choose_torch_device
from pipeline.model.spec import NANO_NAME, OFFICIAL_NAMES, ModelSpec, build_network, nano_spec, official_spec
from pipeline.model.unpickling import harmless_types_only
from pipeline.model.zoo import embedded_models, locate

FEW_MEASURED = 30
"""Fewer objects to validate on get a note."""


def finetune(
    settings: FinetuneSettings, more_hooks: Sequence[Any] = (), copies: Mapping[str, str] | None = None
) -> signal.Signals | None:
    """Train and write the model file; returns the signal that ended the run early, or None.

    Args:
        more_hooks: mmengine's.
        copies: of `read_sets`, where the photos are decoded already.
    """
    if settings.processes == 1 and (started := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"torchrun started {started} processes, which would all train the same: start it once, with plain python, and use "
            "--processes."
        )
    check_work_dir(settings.work_dir, resume=settings.resume)
    with claimed(settings.work_dir) if settings.processes == 1 else nullcontext():  # else the process that started them has
        return _finetune(settings, more_hooks, copies)


def _finetune(settings: FinetuneSettings, more_hooks: Sequence[Any], copies: Mapping[str, str] | None) -> signal.Signals | None:
    start = initial_weights(settings)
    train, val, _ = read_sets(settings, copies)
    spec = spec_for(settings, train.classes)
    settings = settled(settings, spec, train, val)
    lasting = lasting_settings(settings, spec, train, val)
    resume_from = checkpoint_to_resume(settings.work_dir, lasting) if settings.resume else None
    steps_done = step_of(resume_from.name) if resume_from else 0
    runner = ConciseRunner.from_cfg(runner_config(settings, spec, train, val, resume_from, steps_done))
    prepare_network(runner, settings, spec, None if resume_from else start)
    with harmless_types_only(), ending_on_signals() as signals:
        for hook in (StopOnSignal(signals), *more_hooks):
            runner.register_hook(hook)
        try:
            runner.train()
        except precision.Diverged as error:
            raise ValueError(diverged(settings, runner.iter, error)) from error
        finally:
            end_loaders(runner)
        if runner.iter and get_rank() == 0:
            model = export(settings.work_dir)
            if not settings.val_every or runner.message_hub.runtime_info.get("best_score", 0) > 0:
                print(what_next(model, val), flush=True)
    if not signals or runner.iter == runner.max_iters:
        return None
    so_far = f"after {runner.iter:,} of {runner.max_iters:,} steps. --resume continues"
    print(f"Stopped by {signals[0].name} {so_far if runner.iter else 'before the first step: nothing is saved'}.")
    return signals[0]


def initial_weights(settings: FinetuneSettings) -> Path | None:
    """The file to start from, downloaded if it is OpenMMLab's; None for random weights and with --resume."""
    if settings.init_weights == RANDOM_WEIGHTS or (settings.resume and not settings.init_weights):
        return None
    if settings.init_weights:
        return locate(settings.init_weights, setting="--init-weights")
    ours = (path for name, path in embedded_models().items() if name.startswith(settings.model))
    return next(ours, None) or locate(official_name(settings.model), setting="--init-weights")


def read_sets(
    settings: FinetuneSettings, copies: Mapping[str, str] | None = None
) -> tuple[Annotations, Annotations | None, Mapping[str, str]]:
    """Read and check the annotations for training and validation; prints a report.

    Args:
        copies: those that this function returned for the same photos: they are not decoded again. None: all photos are decoded.
    Returns:
        The two sets; and with --val-share the names of photos that are copies of others, with the names of those.
    """
    work = settings.work_dir / f"process{rank}" if (rank := get_rank()) else settings.work_dir
    strict, photos, checked = settings.strict, settings.train_images, copies is not None
    train_file, val_file, val_photos = settings.train, settings.val, settings.val_images
    if settings.val_share:
        whole = read_annotations(train_file, photos, work / "whole", strict=strict)
        print(whole.summary, flush=True)
        if copies is None:
            copies, remarks = copies_within(whole, settings.white_level)
            for remark in remarks:
                print(remark, flush=True)
        train_file, val_file = write_split(whole, work / "split", settings.val_share, settings.val_group, copies)
        val_photos = photos
    train = read_annotations(train_file, photos, work / "train", training=True, strict=strict)
    print(train.summary, flush=True)
    val = None
    if val_file and val_photos:
        val = read_annotations(val_file, val_photos, work / "val", training=True, classes=train.classes, strict=strict)
        print(val.summary, flush=True)
        if val.report.objects < FEW_MEASURED:
            print(f"Note: {val.report.objects} objects are few to measure on: AP depends on chance.", flush=True)
    if not settings.resume and not settings.val_share and not checked and get_rank() == 0:
        for remark in check_photos(train, val, settings.white_level):
            print(remark, flush=True)
    return train, val, copies or {}


def settled(settings: FinetuneSettings, spec: ModelSpec, train: Annotations, val: Annotations | None) -> FinetuneSettings:
    """The settings with values for everything that depends on the data and the machine; prints those."""
    chosen, why = precision.choose_precision(settings.precision)
    print(f"Device: {precision.device_name()}. Precision: {chosen} ({why}).", flush=True)
    settings = replace(settings, precision=chosen)
    if settings.batch_size == AUTO_BATCH:
        settings = replace(settings, batch_size=batch_size_that_fits(settings, spec, train))
    every = (validation_interval(settings, train) if val else 0) if settings.val_every is None else settings.val_every
    if val and every:
        check_defined(settings.best_metric, val)
    steps = training_steps(settings, train)
    measured = f", a validation every {every:,}" if every else ""
    print(
        f"Length: {steps:,} steps of {photos_a_step(settings)} photos, {steps / steps_an_epoch(settings, train):.3g} epochs{measured}.",
        flush=True,
    )
    return replace(settings, val_every=every)


def batch_size_that_fits(settings: FinetuneSettings, spec: ModelSpec, train: Annotations) -> int:
    """The batch size for `--batch-size auto`, found by trial steps with a separate network; a resumed run keeps its size."""
    if settings.resume and (photos := photos_a_step_before(settings.work_dir)):
        chosen, why = max(photos // settings.accumulate, 1), "as the run began"
    else:
        network: Any = build_network(spec)
        network.to(choose_torch_device("auto"), memory_format=torch.channels_last)
        initialise_silently(network)
        prepare_training(network, settings)
        dataset = train_loader(replace(settings, batch_size=1), spec, train)["dataset"]
        chosen, why = choose_batch_size(network, dataset, precision.optim_wrapper_type(settings.precision))
    print(f"Batch size: {chosen} ({why}). --lr stays as it is: {settings.lr:g}.", flush=True)
    return chosen


def official_name(model: str) -> str:
    """`rtmdet-ins_s` → OpenMMLab's name of that size."""
    return next(name for name in OFFICIAL_NAMES if name.startswith(f"{model}_"))


def spec_for(settings: FinetuneSettings, classes: tuple[str, ...]) -> ModelSpec:
    """The network of the asked size, with the class channels of the training data."""
    if settings.model == NANO_NAME:
        spec = nano_spec(classes, settings.image_size)
        name = settings.name or spec.name
    else:
        spec, name = official_spec(official_name(settings.model)).with_classes(classes), settings.name or settings.model
    return ModelSpec(name, spec.classes, settings.image_size, spec.config)


def prepare_network(runner: Any, settings: FinetuneSettings, spec: ModelSpec, start: Path | None) -> None:
    """Load the initial weights; set batch norms, frozen layers and the precision of the losses."""
    network = layers.unwrapped(runner.model)
    network.init_weights()
    fresh: Sequence[str] = spec.classes
    if start:
        summary, fresh = load_what_fits(network, start, spec.classes)
        print(summary, flush=True)
    elif not settings.resume:
        print("The network starts from random weights, which needs far more photos and epochs.", flush=True)
    if not settings.resume and (note := too_little_movement(settings.lr, runner.cfg.train_cfg.max_iters, fresh)):
        print(note, flush=True)
    trained = prepare_training(network, settings)
    print(f"{spec.name}: {trained:,} of {sum(p.numel() for p in network.parameters()):,} parameters train.", flush=True)


def prepare_training(network: Any, settings: FinetuneSettings) -> int:
    """What is frozen and how losses are computed; returns how many numbers train."""
    trained = layers.freeze(network, settings.freeze)
    layers.check_layers(network, "--fix-batch-norm", settings.fix_batch_norm, batch_norms=True)
    losses.keep_losses_in_fp32(network)
    losses.leave_crowds_out(network)
    losses.save_mask_memory(network)
    if settings.gradient_checkpointing:
        layers.recompute_backbone(network)
    return trained


def diverged(settings: FinetuneSettings, step: int, error: precision.Diverged) -> str:
    """The message for a run whose loss is not finite; exports the last good checkpoint."""
    said = f"after {step} steps {error}: the training diverged. Try again with a lower --lr, such as {settings.lr / 10:g}"
    if newest_checkpoint(settings.work_dir) is None:
        return f"{said}. No checkpoint was written before (--save-every {settings.save_every})."
    return f"{said}. {export(settings.work_dir)} has the last good checkpoint."
