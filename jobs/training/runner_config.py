"""From the settings of a run to mmengine's Runner configuration: loaders, optimizer, schedule, hooks."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json
import math
from pathlib import Path
from typing import Any

from mmengine.config import Config

from jobs.annotations.datasets import Annotations
from jobs.training import interruption, seen_objects  # noqa: F401  (they register themselves)
from jobs.training.augment import LARGEST_MOSAIC, image_transforms, train_transforms
from jobs.training.precision import optim_wrapper_type
from jobs.training.settings import MIN_EMA, FinetuneSettings
from pipeline.model.spec import ModelSpec

FINAL_LR_SHARE = 0.02
WARMUP_START_SHARE = 0.01
PHOTOS_MEMORY_MB = 2048
"""Decoded photos that all loader processes together keep."""


def runner_config(
    settings: FinetuneSettings, spec: ModelSpec, train: Annotations, val: Annotations | None, resume_from: Path | None
) -> Config:
    """mmengine's configuration of a whole run.

    Args:
        resume_from: checkpoint to go on from.
    Source: mmdet rtmdet-ins_l_8xb32-300e_coco.py, with the schedule in steps instead of 300 epochs.
    """
    steps = training_steps(settings, train)
    config: dict[str, Any] = {
        "default_scope": "mmdet",
        "work_dir": str(settings.work_dir),
        "model": spec.config,
        "train_dataloader": train_loader(settings, spec, train, steps),
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": steps, "val_interval": settings.val_every or steps + 1},
        "optim_wrapper": _optim_wrapper(settings),
        "param_scheduler": _schedule(settings, steps),
        "default_hooks": _default_hooks(settings, steps),
        "custom_hooks": [
            *_custom_hooks(settings, spec, steps, lasting_settings(settings, spec, train)),
            {"type": "SeenObjectsHook", "objects": train.report.objects, "longest_side_px": longest_side_px(settings)},
        ],
        "log_processor": {"type": "LogProcessor", "by_epoch": False, "window_size": settings.log_every},
        "visualizer": {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        "env_cfg": {"cudnn_benchmark": True, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 1}},
        "randomness": {"seed": settings.seed},
        "resume": resume_from is not None,
        "load_from": None if resume_from is None else str(resume_from),
        "log_level": "INFO",
    }
    if val is not None and settings.val_every:
        config |= validation_config(val, spec)
    return Config(config)


def training_steps(settings: FinetuneSettings, train: Annotations) -> int:
    """Length of the run in optimizer steps; an epoch's last batch is filled up."""
    return settings.epochs * steps_an_epoch(settings, train) if settings.steps is None else settings.steps


def longest_side_px(settings: FinetuneSettings) -> float:
    """Of a photo in a training sample, at most."""
    return settings.image_size * max(settings.scale_jitter[1], LARGEST_MOSAIC if settings.mosaic else 0)


def ema_momentum(settings: FinetuneSettings, steps: int) -> float:
    """Of the averaged weights, for a run of so many steps. One that remembers longer than the run would save what it began with."""
    return min(max(MIN_EMA, 10 / steps), 0.5) if settings.ema is None else settings.ema


def lasting_settings(settings: FinetuneSettings, spec: ModelSpec, train: Annotations) -> dict[str, Any]:
    """What a run keeps from its first step to its last, by option, as plain JSON types: a checkpoint goes on with nothing else."""
    return {
        "--steps": training_steps(settings, train),
        "--model": settings.model,
        "classes": list(spec.classes),
        "--image-size": settings.image_size,
        "--optimizer": settings.optimizer,
        "--lr": settings.lr,
        "--lr-mult": [f"{layer}={factor:g}" for layer, factor in settings.lr_mult],
        "--weight-decay": settings.weight_decay,
        "--scheduler": settings.scheduler,
        "--warmup": settings.warmup,
        "--freeze": sorted(settings.freeze),
        "--ema": ema_momentum(settings, training_steps(settings, train)),
        "--val": bool(settings.val_every),
    }


def steps_an_epoch(settings: FinetuneSettings, train: Annotations) -> int:
    """Optimizer steps that see every photo once."""
    return math.ceil(train.photo_count / settings.batch_size)


def validation_config(val: Annotations, spec: ModelSpec) -> dict[str, Any]:
    """mmdet's own validation: its test transforms, its loop, COCO box and mask AP."""
    return {
        "val_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": _dataset(val, spec) | {"test_mode": True, "pipeline": image_transforms(spec.input_size)},
        },
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "CocoMetric", "ann_file": str(val.coco_json), "metric": ["bbox", "segm"]},
    }


def _dataset(annotations: Annotations, spec: ModelSpec) -> dict[str, Any]:
    return {
        "type": "CocoDataset",
        "ann_file": str(Path(annotations.coco_json).resolve()),
        "data_prefix": {"img": f"{Path(annotations.images).resolve()}/"},
        "metainfo": {"classes": spec.classes},
    }


def train_loader(settings: FinetuneSettings, spec: ModelSpec, train: Annotations, steps: int) -> dict[str, Any]:
    samples_a_process = steps * settings.batch_size // max(settings.workers, 1)
    mosaic_samples = int(samples_a_process * settings.mosaic_until)
    memory_mb = PHOTOS_MEMORY_MB / max(settings.workers, 1)
    transforms = train_transforms(settings.image_size, settings.mosaic, mosaic_samples, settings.scale_jitter, memory_mb)
    return {
        "batch_size": settings.batch_size,
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
        "worker_init_fn": {"type": "start_loader", "num_workers": settings.workers, "seed": settings.seed},
        "sampler": {"type": "InfiniteSampler", "shuffle": True},
        "dataset": _dataset(train, spec) | {"filter_cfg": {"filter_empty_gt": False}, "pipeline": transforms},
    }


def _optim_wrapper(settings: FinetuneSettings) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        optimizer |= {"type": "AdamW"}
    else:
        optimizer |= {"type": "SGD", "momentum": 0.9, "nesterov": True}
    rates = [list(pair) for pair in settings.lr_mult]
    wrapper = optim_wrapper_type(settings.precision) | {
        "optimizer": optimizer,
        "constructor": "RatesByLayer",
        "paramwise_cfg": {"norm_decay_mult": 0, "bias_decay_mult": 0, "bypass_duplicate": True, "rates": rates},
    }
    return wrapper | ({"clip_grad": {"max_norm": settings.clip_grad}} if settings.clip_grad else {})


def warmup_steps(settings: FinetuneSettings, steps: int) -> int:
    """Steps during which the learning rate rises: half of a short run at most."""
    return min(settings.warmup, steps // 2)


def _schedule(settings: FinetuneSettings, steps: int) -> list[dict[str, Any]]:
    warmup = warmup_steps(settings, steps)
    schedule: list[dict[str, Any]] = []
    if warmup:
        schedule.append({"type": "LinearLR", "start_factor": WARMUP_START_SHARE, "by_epoch": False, "begin": 0, "end": warmup})
    if settings.scheduler == "cosine":
        cosine = {"type": "CosineAnnealingLR", "eta_min_ratio": FINAL_LR_SHARE, "T_max": steps - warmup}
        schedule.append(cosine | {"by_epoch": False, "begin": warmup, "end": steps})
    return schedule


def _default_hooks(settings: FinetuneSettings, steps: int) -> dict[str, Any]:
    saver: dict[str, Any] = {"type": "SavingHook", "by_epoch": False, "interval": min(settings.save_every, steps)}
    if settings.val_every:
        saver |= {"save_best": "coco/segm_mAP", "rule": "greater"}
    return {
        "logger": {"type": "LoggerHook", "interval": settings.log_every},
        "checkpoint": saver | {"save_last": True, "max_keep_ckpts": 3},
    }


def _custom_hooks(settings: FinetuneSettings, spec: ModelSpec, steps: int, lasting: dict[str, Any]) -> list[dict[str, Any]]:
    model_spec = {"name": spec.name, "classes": list(spec.classes), "input_size": spec.input_size, "config": spec.config}
    hooks: list[dict[str, Any]] = [
        {"type": "FreezeHook", "frozen": settings.freeze, "fixed_statistics": settings.fix_batch_norm},
        {"type": "RefuseDivergedWeights"},
        {"type": "DescribeModelHook", "model_spec": json.dumps(model_spec), "lasting": json.dumps(lasting)},
    ]
    if momentum := ema_momentum(settings, steps):
        average = {"type": "EMAHook", "ema_type": "ExpMomentumEMA", "momentum": momentum, "gamma": max(steps // 20, 1)}
        hooks.append(average | {"update_buffers": True, "priority": 49})
    if settings.early_stopping:
        patience = {"patience": settings.early_stopping, "every": settings.val_every, "warmup": warmup_steps(settings, steps)}
        hooks.append({"type": "StopWithoutProgress"} | patience)
    return hooks
