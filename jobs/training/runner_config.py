"""Builds mmengine's Runner configuration from the settings of a run: loaders, optimizer, schedule, hooks."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import hashlib
import json
import math
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.config import Config

from jobs.annotations.datasets import Annotations
from jobs.training.data import samples, seen_objects  # noqa: F401  (they register what is named below)
from jobs.training.data.augment import LARGEST_MOSAIC, train_transforms
from jobs.training.loop import saving, step_loop, stopping, validation  # noqa: F401  (as above)
from jobs.training.network import layers  # noqa: F401  (as above)
from jobs.training.network.precision import optim_wrapper_type
from jobs.training.output import console  # noqa: F401  (as above)
from jobs.training.output.logs import log_backends
from jobs.training.settings import EPOCHS, MAX_EMA, MAX_VALIDATIONS, MIN_EMA, MIN_STEPS, FinetuneSettings
from pipeline.model.spec import ModelSpec

FINAL_LR_SHARE = 0.02
WARMUP_START_SHARE = 0.01
DATA_PARALLEL = {
    "type": "MMDistributedDataParallel",
    "find_unused_parameters": True,
    "broadcast_buffers": False,
    "device_ids": None,
}
"""A batch without objects leaves the mask branch unused."""
STEPS_DOWN = (2 / 3, 8 / 9)
"""--scheduler step: shares of the run after which the learning rate is divided by 10; mmdet's 1x schedule (8 and 11 of 12 epochs)."""
VAL_BATCH = 8
"""Batch size of a validation; more is not faster."""
PHOTOS_MEMORY_MB = 2048
"""Cache of decoded photos, for all loader processes together, MB."""


def runner_config(
    settings: FinetuneSettings,
    spec: ModelSpec,
    train: Annotations,
    val: Annotations | None,
    resume_from: Path | None = None,
    steps_done: int = 0,
) -> Config:
    """mmengine's configuration of a run.

    Args:
        resume_from, steps_done: checkpoint to resume from, and its step.
    Source: mmdet rtmdet-ins_l_8xb32-300e_coco.py, with the schedule in steps instead of 300 epochs.
    """
    steps = training_steps(settings, train)
    longest_side_px = settings.image_size * max(settings.scale_jitter[1], LARGEST_MOSAIC if settings.mosaic else 0)
    config: dict[str, Any] = {
        "default_scope": "mmdet",
        "work_dir": str(settings.work_dir),
        "experiment_name": f"{settings.work_dir.name}-{uuid.uuid4().hex[:8]}",  # mmengine's own is the second, which two runs may share
        "model": spec.config,
        "train_dataloader": train_loader(settings, spec, train, steps_done),
        "train_cfg": {
            "type": "StepLoop",
            "max_iters": steps,
            "val_interval": settings.val_every or steps + 1,
            "accumulate": settings.accumulate,
        },
        "optim_wrapper": _optim_wrapper(settings),
        "param_scheduler": _schedule(settings, steps),
        "default_hooks": _default_hooks(settings, steps),
        "custom_hooks": [
            *_custom_hooks(settings, spec, steps, lasting_settings(settings, spec, train, val)),
            {"type": "KeepMeasured", "objects": json.dumps(objects_by_label(train))},
            {"type": "SeenObjectsHook", "objects": train.report.objects, "longest_side_px": longest_side_px},
        ],
        "log_processor": {"type": "LogProcessor", "by_epoch": False, "window_size": settings.log_every},
        "visualizer": {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}, *log_backends(settings)]},
        "env_cfg": {"cudnn_benchmark": True, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 1}},
        "randomness": {"seed": settings.seed},
        "resume": resume_from is not None,
        "load_from": None if resume_from is None else str(resume_from),
        "log_level": "INFO",
    }
    if settings.processes > 1:  # in which case Ray has joined them already (jobs.training.cluster)
        config |= {"launcher": "pytorch", "model_wrapper_cfg": DATA_PARALLEL, "sync_bn": "torch" if settings.sync_bn else None}
    if val is not None and settings.val_every:
        config |= validation_config(settings, spec, val)
    return Config(config)


def training_steps(settings: FinetuneSettings, train: Annotations) -> int:
    """Length of the run in optimizer steps; the last batch of an epoch is filled up."""
    if settings.steps is not None:
        return settings.steps
    an_epoch = steps_an_epoch(settings, train)
    return max(EPOCHS * an_epoch, MIN_STEPS) if settings.epochs is None else settings.epochs * an_epoch


def validation_interval(settings: FinetuneSettings, train: Annotations) -> int:
    """Steps between validations, if --val-every is left out."""
    return max(steps_an_epoch(settings, train), math.ceil(training_steps(settings, train) / MAX_VALIDATIONS))


def ema_momentum(settings: FinetuneSettings, steps: int) -> float:
    """EMA momentum for a run of so many steps: averages over about its last tenth, not over its initial weights."""
    return min(max(MIN_EMA, 10 / steps), MAX_EMA) if settings.ema is None else settings.ema


def lasting_settings(settings: FinetuneSettings, spec: ModelSpec, train: Annotations, val: Annotations | None) -> dict[str, Any]:
    """The settings that may not change when a run is resumed, by option, as plain JSON types.

    The data belong to them: of other photos --val-share holds back others, so the run would be measured on photos that it was trained on,
    and the best checkpoint of all is chosen by measurements of one validation set.

    Not --workers, --precision and what is measured or saved when: these may change. --mosaic and what else makes samples may, too, but then
    the samples are others.
    """
    return {
        "--steps": training_steps(settings, train),
        "--train": size_of(train),
        "objects of --train": fingerprint(train),
        "--model": settings.model,
        "classes": list(spec.classes),
        "--image-size": settings.image_size,
        "--white-level": settings.white_level,
        "--optimizer": settings.optimizer,
        "--lr": settings.lr,
        "--lr-mult": [f"{layer}={factor:g}" for layer, factor in settings.lr_mult],
        "--weight-decay": settings.weight_decay,
        "--scheduler": settings.scheduler,
        "photos a step": photos_a_step(settings),
        "--seed": settings.seed,
        "--warmup": settings.warmup,
        "--freeze": sorted(settings.freeze),
        "--ema": ema_momentum(settings, training_steps(settings, train)),
        "--val": bool(settings.val_every),
        "best metric": settings.best_metric,
    } | ({"validation on": size_of(val), "objects of --val": fingerprint(val)} if val and settings.val_every else {})


def fingerprint(part: Annotations) -> str:
    """Differs between sets of other photos, labels, boxes or areas, and not between files that write the same ones otherwise."""
    document = part.document()
    photos = {photo["id"]: Path(photo["file_name"]).name for photo in document["images"]}
    objects = (
        (photos[one["image_id"]], one["category_id"], one["iscrowd"], *(round(number) for number in (*one["bbox"], one["area"])))
        for one in document["annotations"]
    )
    return f"fingerprint {hashlib.sha256(repr((sorted(photos.values()), sorted(objects))).encode()).hexdigest()[:8]}"


def size_of(part: Annotations) -> str:
    """Photos and objects of a training or validation set, as text."""
    return f"{part.photo_count:,} photos, {part.report.objects:,} objects"


def photos_a_step(settings: FinetuneSettings) -> int:
    """Photos per optimizer step, of all processes together."""
    return settings.batch_size * settings.accumulate * settings.processes


def steps_an_epoch(settings: FinetuneSettings, train: Annotations) -> int:
    """Optimizer steps that see every photo once."""
    return math.ceil(train.photo_count / photos_a_step(settings))


def validation_config(settings: FinetuneSettings, spec: ModelSpec, val: Annotations) -> dict[str, Any]:
    """Validation by the serving code (`jobs.training.loop.validation`), in the three sections that mmengine requires."""
    return {
        "val_dataloader": {"coco_json": str(val.coco_json), "images": str(val.images), "threads": max(settings.workers, 1)},
        "val_cfg": {
            "type": "ServedValLoop",
            "input_size": spec.input_size,
            "batch_size": min(settings.batch_size, VAL_BATCH),
            "white_level": settings.white_level,
        },
        "val_evaluator": {},
    }


def train_loader(settings: FinetuneSettings, spec: ModelSpec, train: Annotations, steps_done: int = 0) -> dict[str, Any]:
    """mmengine's data loader configuration for a run that begins at step `steps_done`."""
    samples_a_step = photos_a_step(settings)
    transforms = train_transforms(
        settings.image_size,
        settings.scale_jitter,
        flip=not settings.no_flip,
        memory_mb=PHOTOS_MEMORY_MB / max(settings.workers, 1),
        white_level=settings.white_level,
    )
    return {
        "batch_size": settings.batch_size,
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
        "worker_init_fn": {"type": "start_loader"},
        "sampler": {"type": "NumberedSampler", "start": steps_done * samples_a_step, "repeat_rare": settings.repeat_rare},
        "dataset": {
            "type": "TrainingPhotos",
            "ann_file": str(Path(train.coco_json).resolve()),
            "data_prefix": {"img": f"{Path(train.images).resolve()}/"},
            "metainfo": {"classes": spec.classes},
            "filter_cfg": {"filter_empty_gt": False},
            "seed": settings.seed,
            "mosaic": settings.mosaic,
            "mosaic_samples": int(training_steps(settings, train) * samples_a_step * settings.mosaic_until),
            "transforms": transforms,
        },
    }


def objects_by_label(annotations: Annotations) -> dict[str, int]:
    """Number of objects of each label, without crowds."""
    coco = annotations.document()
    counts = Counter(found["category_id"] for found in coco["annotations"] if not found["iscrowd"])
    return {category["name"]: counts[category["id"]] for category in coco["categories"]}


def _optim_wrapper(settings: FinetuneSettings) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        optimizer |= {"type": "AdamW"}
    else:
        optimizer |= {"type": "SGD", "momentum": 0.9, "nesterov": True}
    rates = [list(pair) for pair in settings.lr_mult]
    wrapper = optim_wrapper_type(settings.precision) | {
        "optimizer": optimizer,
        "accumulative_counts": settings.accumulate,
        "constructor": "RatesByLayer",
        "paramwise_cfg": {"norm_decay_mult": 0, "bias_decay_mult": 0, "bypass_duplicate": True, "rates": rates},
    }
    return wrapper | ({"clip_grad": {"max_norm": settings.clip_grad}} if settings.clip_grad else {})


def warmup_steps(settings: FinetuneSettings, steps: int) -> int:
    """Warm-up steps: at most half of the run. 1 becomes 0: mmengine would never leave the initial learning rate."""
    warmup = min(settings.warmup, steps // 2)
    return warmup if warmup > 1 else 0


def _schedule(settings: FinetuneSettings, steps: int) -> list[dict[str, Any]]:
    warmup = warmup_steps(settings, steps)
    schedule: list[dict[str, Any]] = []
    if warmup:
        schedule.append({"type": "LinearLR", "start_factor": WARMUP_START_SHARE, "by_epoch": False, "begin": 0, "end": warmup})
    rest: dict[str, Any] = {"by_epoch": False, "begin": warmup, "end": steps}
    if settings.scheduler == "cosine":
        schedule.append(rest | {"type": "CosineAnnealingLR", "eta_min_ratio": FINAL_LR_SHARE, "T_max": steps - warmup})
    elif settings.scheduler == "linear":
        schedule.append(rest | {"type": "LinearLR", "start_factor": 1.0, "end_factor": FINAL_LR_SHARE})
    elif settings.scheduler == "step":
        milestones = [int(steps * share) - warmup for share in STEPS_DOWN]  # mmengine counts them from `begin`
        schedule.append(rest | {"type": "MultiStepLR", "milestones": milestones, "gamma": 0.1})
    return schedule


def _default_hooks(settings: FinetuneSettings, steps: int) -> dict[str, Any]:
    saver: dict[str, Any] = {"type": "SavingHook", "by_epoch": False, "interval": min(settings.save_every, steps)}
    if settings.val_every:
        saver |= {"save_best": settings.best_metric, "rule": "greater"}
    return {
        "logger": {"type": "LoggerHook", "interval": settings.log_every, "log_metric_by_epoch": False},
        "checkpoint": saver | {"save_last": True, "max_keep_ckpts": 3},
    }


def _custom_hooks(settings: FinetuneSettings, spec: ModelSpec, steps: int, lasting: dict[str, Any]) -> list[dict[str, Any]]:
    model_spec = {"name": spec.name, "classes": list(spec.classes), "input_size": spec.input_size, "config": spec.config}
    hooks: list[dict[str, Any]] = [
        {"type": "FreezeHook", "frozen": settings.freeze, "fixed_statistics": settings.fix_batch_norm},
        {"type": "RefuseDivergedWeights"},
        {"type": "ReportMeasurements", "best_metric": settings.best_metric},
        {"type": "DescribeModelHook", "model_spec": json.dumps(model_spec), "lasting": json.dumps(lasting)},
    ]
    if momentum := ema_momentum(settings, steps):
        average = {"type": "EMAHook", "ema_type": "ExpMomentumEMA", "momentum": momentum, "gamma": max(steps // 20, 1)}
        hooks.append(average | {"update_buffers": True, "priority": 49})
    if settings.early_stopping:
        patience = {"patience": settings.early_stopping, "every": settings.val_every, "warmup": warmup_steps(settings, steps)}
        hooks.append({"type": "StopWithoutProgress"} | patience)
    return hooks
