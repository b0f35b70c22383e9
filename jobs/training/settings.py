"""The settings of a fine-tuning run. Each field is an option of `jobs.finetune` (`jobs.training.options`)."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.annotations.report import ANNOTATIONS_HELP, STRICT_HELP
from jobs.evaluation.metrics_coco import STATISTICS
from jobs.photos import WHITE_LEVEL_HELP
from jobs.training.options import option, parse, parser_for
from pipeline.inference.devices import owned_cores

MAX_WORKERS = 8
"""Largest default of --workers; each loader process holds a copy of the libraries and two batches."""
MODELS = ("rtmdet-ins_nano", "rtmdet-ins_tiny", "rtmdet-ins_s", "rtmdet-ins_m", "rtmdet-ins_l", "rtmdet-ins_x")
LOGS = ("tensorboard", "mlflow")
RANDOM_WEIGHTS = "none"
"""Value of --init-weights for random weights."""
AUTO_BATCH = 0
"""Value of `batch_size` for --batch-size auto."""
METRICS = tuple(f"{kind}_{name}" for kind in ("mask", "box") for name in STATISTICS)
EPOCHS, MIN_STEPS = 10, 600
"""Default length of a run. Ten epochs of few photos are too few steps for new classes (docs/TRAINING.md)."""
MAX_VALIDATIONS = 25
"""In a run of the default --val-every: where an epoch has few steps, validations would take longer than the training."""
MIN_EMA, MAX_EMA = 0.002, 0.5
"""Momentum of the averaged weights: the smallest default, which averages over some 500 steps; and the largest that is allowed."""


def default_workers() -> int:
    """Default number of loader processes: several beside a GPU; one if the CPU trains, because its cores are busy."""
    return max(1, min(MAX_WORKERS, owned_cores() - 1)) if torch.cuda.is_available() else 1


def _prefix_and_factor(text: str) -> tuple[str, float]:
    prefix, _, factor = text.partition("=")
    try:
        return prefix, float(factor)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected LAYER=FACTOR such as backbone=0.1, got {text!r}") from error


def _batch_size(text: str) -> int:
    if text == "auto":
        return AUTO_BATCH
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """One fine-tuning run. Lengths in optimizer steps or epochs, sizes in pixels."""

    # data
    train: Path = option(..., f"annotations to train on: {ANNOTATIONS_HELP}")
    train_images: Path = option(..., "folder of their photos")
    val: Path | None = option(None, f"annotations to validate on: {ANNOTATIONS_HELP}")
    val_images: Path | None = option(None, "folder of their photos")
    val_share: float = option(
        0.0,
        "validate on this share of the training photos instead of --val, 0..0.5; they are not trained on",
        minimum=0,
        maximum=0.5,
    )
    val_group: str | None = option(
        None,
        "with --val-share: regular expression whose first group, in the file name, says which photos belong together, such as '(.*)/' "
        "or '^([^_]+)_'; a group is trained on or measured on, never both (default: copies, tiles and "
        "Roboflow's augmented photos of one photo belong together)",
        metavar="PATTERN",
    )
    strict: bool = option(False, STRICT_HELP)
    work_dir: Path = option(..., "folder for logs and checkpoints")

    # network
    model: str = option("rtmdet-ins_nano", "network size", choices=MODELS)
    name: str | None = option(None, "name of the trained model (default: the size and its class, or the configuration's name)")
    init_weights: str | None = option(
        None,
        "initial weights: a name from `python -m pipeline.model.zoo list`, or a .pth or .safetensors file; fitting layers are loaded, "
        f"class channels by name; {RANDOM_WEIGHTS}: random weights (default: the embedded model, or OpenMMLab's of this size)",
    )
    image_size: int = option(640, "side of the square network input, px, a multiple of 32", minimum=32, step=32)
    freeze: tuple[str, ...] = option((), "name prefixes of layers to freeze", metavar="LAYER")
    fix_batch_norm: tuple[str, ...] = option((), "layers that keep their batch-norm statistics", metavar="LAYER")

    # length and steps
    epochs: int | None = option(
        None, f"passes over the training photos (default: {EPOCHS}, and at least {MIN_STEPS} steps)", minimum=1
    )
    steps: int | None = option(None, "optimizer steps, instead of --epochs", minimum=1, instead_of="epochs")
    batch_size: int = option(
        4,
        "photos per batch; auto: the largest power of two that fits into memory, found by trial steps",
        type=_batch_size,
        metavar="N",
    )
    accumulate: int = option(1, "batches per optimizer step (gradient accumulation)", minimum=1)
    optimizer: str = option("adamw", "optimizer", choices=("adamw", "sgd"))
    lr: float = option(2e-3, "peak learning rate")
    lr_mult: tuple[tuple[str, float], ...] = option(
        (), "factors on the learning rate of layers, by prefix of their names", type=_prefix_and_factor, metavar="LAYER=FACTOR"
    )
    warmup: int = option(100, "steps of linear warm-up, at most half of the run", minimum=0)
    scheduler: str = option(
        "cosine",
        "learning rate after the warm-up; step: a tenth at two thirds of the run and again at eight ninths",
        choices=("cosine", "linear", "step", "constant"),
    )
    weight_decay: float = option(0.05, "not applied to norms and biases", minimum=0)
    clip_grad: float = option(10.0, "largest gradient norm; 0 turns clipping off", minimum=0)
    ema: float | None = option(
        None,
        "share of each step's weights in the averaged weights, which are saved, such as 0.002 (not a decay, such as 0.998); 0 turns "
        f"averaging off (default: 10 over the run's steps, and at least {MIN_EMA:g}, so that the average is of the run's last tenth)",
        minimum=0,
        maximum=MAX_EMA,
    )
    seed: int = option(0, "random seed", minimum=0, maximum=2**32 - 1)

    # what the photos go through
    white_level: int | None = option(None, WHITE_LEVEL_HELP, minimum=1)
    mosaic: float = option(0.5, "share of samples that are mosaics of four photos, 0..1", minimum=0, maximum=1)
    mosaic_until: float = option(0.7, "share of the run after which mosaics stop, 0..1", minimum=0, maximum=1)
    scale_jitter: tuple[float, float] = option(
        (0.5, 2.0), "range of the random scale: long side of the photo / image size", metavar=("MIN", "MAX")
    )
    no_flip: bool = option(False, "do not mirror photos: where left and right differ, such as text or traffic signs")
    repeat_rare: float = option(
        0.0,
        "show photos of rare classes more often: classes in less than this share of the photos; 0: every photo once an epoch "
        "(repeat factors of LVIS, which takes 0.001)",
        minimum=0,
        maximum=1,
        metavar="SHARE",
    )

    # measuring and saving
    save_every: int = option(500, "steps between checkpoints", minimum=0)
    val_every: int | None = option(
        None,
        f"steps between validations on --val (default: one epoch, but at most {MAX_VALIDATIONS} in a run); 0: none",
        minimum=0,
    )
    best_metric: str = option("mask_ap", "metric that selects the best checkpoint", choices=METRICS)
    early_stopping: int = option(0, "stop after this many validations without a better one; 0: never", minimum=0)
    resume: bool = option(False, "continue from the last checkpoint in --work-dir")
    log_every: int = option(20, "steps between progress lines", minimum=1)

    log_to: tuple[str, ...] = option(
        (),
        "also log to these, by mmengine: tensorboard (into the work folder), mlflow (to MLFLOW_TRACKING_URI, else into mlflow.db there)",
        choices=LOGS,
    )

    # machine
    precision: str = option(
        "auto",
        "auto: bf16 where the device computes in it, fp16 on older GPUs, else fp32",
        choices=("auto", "bf16", "fp32", "fp16"),
    )
    gradient_checkpointing: bool = option(False, "gradient checkpointing of the backbone: less memory, a third more time")
    processes: int = option(
        1,
        "training processes on a Ray cluster (RAY_ADDRESS, or this machine), each with batches of --batch-size; --work-dir is shared",
        minimum=1,
    )
    sync_bn: bool = option(
        False, "batch norms over the photos of all processes (torch's SyncBatchNorm; on GPUs, --processes above 1)"
    )
    workers: int = option(
        default_workers,
        "loader processes of each training process (default: 1; on a machine with a GPU one for every core but one, at most 8)",
        minimum=0,
    )


def settings_from_args(argv: Sequence[str] | None = None) -> FinetuneSettings:
    """Parse and check the command line; argparse prints what is wrong and exits with status 2."""
    parser = parser_for(FinetuneSettings, "python -m jobs.finetune", "Fine-tune an RTMDet-Ins model.")
    settings = parse(FinetuneSettings, parser, argv)
    if problem := _contradiction(settings):
        parser.error(problem)
    return settings


def _contradiction(settings: FinetuneSettings) -> str | None:
    if (settings.val is None) != (settings.val_images is None):
        return "--val and --val-images go together."
    if settings.val and settings.val_share:
        return "--val and --val-share exclude each other: give one of them."
    if settings.val_group and not settings.val_share:
        return "--val-group goes with --val-share."
    if not (settings.val or settings.val_share) and (settings.val_every or settings.early_stopping):
        return "--val-every and --early-stopping need --val and --val-images, or --val-share."
    if settings.early_stopping and settings.val_every == 0:
        return "--early-stopping needs validations: --val-every above 0."
    if settings.processes > 1 and settings.batch_size == AUTO_BATCH:
        return (
            "--batch-size auto works with one process only: several would find different sizes. With --processes, give a number."
        )
    if settings.processes > 1 and importlib.util.find_spec("pyarrow") is None:
        return "--processes above 1 needs Ray Train's packages: install them on every node: .venv/bin/pip install -e '.[cluster]'"
    if settings.sync_bn and (settings.processes == 1 or not torch.cuda.is_available()):
        return "--sync-bn joins the batch norms of several processes on GPUs: it needs --processes above 1 and GPUs."
    if not settings.lr > 0 or min((factor for _, factor in settings.lr_mult), default=0) < 0:
        return "--lr must be above 0, and factors of --lr-mult at least 0."
    if len(dict(settings.lr_mult)) < len(settings.lr_mult):
        return "--lr-mult gives a layer two factors."
    if not 0 < settings.scale_jitter[0] <= settings.scale_jitter[1] < math.inf:
        return "--scale-jitter must be two numbers above 0, the smaller one first."
    for name in settings.log_to:
        if importlib.util.find_spec(name) is None:
            return f"--log-to {name} needs the package {name}, which is not installed: pip install {name}"
    return None
