"""What a fine-tuning run is told: the command line of `jobs.finetune`, checked once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.annotations.report import STRICT_HELP
from pipeline.inference.devices import owned_cores

MAX_WORKERS = 8
"""Loader processes that are started unasked; each holds a copy of the libraries and two batches."""
MODELS = ("rtmdet-ins_nano", "rtmdet-ins_tiny", "rtmdet-ins_s", "rtmdet-ins_m", "rtmdet-ins_l", "rtmdet-ins_x")

MIN_EMA = 0.002
"""Momentum of the averaged weights in a long run: their memory is some 500 steps."""

_RANGES = {
    **dict.fromkeys(("batch_size", "epochs", "steps", "log_every"), (1.0, math.inf)),
    **dict.fromkeys(("warmup", "save_every", "val_every", "early_stopping", "restore_batch_norm", "workers"), (0.0, math.inf)),
    **dict.fromkeys(("weight_decay", "clip_grad"), (0.0, math.inf)),
    **dict.fromkeys(("mosaic", "mosaic_until", "ema"), (0.0, 1.0)),
    "seed": (0.0, 2.0**32 - 1),
}
"""Least and most of each number; ends included."""


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """One fine-tuning run. Lengths in optimizer steps or epochs, sizes in pixels; defaults are AzureML's where it has one."""

    train: Path
    train_images: Path
    work_dir: Path
    val: Path | None = None
    val_images: Path | None = None
    strict: bool = False
    model: str = "rtmdet-ins_nano"
    name: str | None = None
    init_weights: str | None = None
    epochs: int = 10
    steps: int | None = None
    batch_size: int = 8
    lr: float = 9.67e-5
    lr_mult: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    fix_batch_norm: tuple[str, ...] = ()
    restore_batch_norm: int = 0
    image_size: int = 640
    mosaic: float = 0.5
    mosaic_until: float = 0.7
    scale_jitter: tuple[float, float] = (0.5, 2.0)
    warmup: int = 100
    scheduler: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    ema: float | None = None
    clip_grad: float = 10.0
    seed: int = 0
    precision: str = "bf16"
    save_every: int = 500
    val_every: int | None = None
    early_stopping: int = 0
    resume: bool = False
    workers: int = 1
    log_every: int = 20


def settings_from_args(argv: Sequence[str] | None = None) -> FinetuneSettings:
    """Parse and check the command line; argparse prints what is wrong and exits with status 2."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    options["lr_mult"] = tuple(options["lr_mult"])
    for key in ("freeze", "fix_batch_norm", "scale_jitter"):
        options[key] = tuple(options[key])
    settings = FinetuneSettings(**options)
    if problem := _contradiction(settings):
        parser.error(problem)
    return settings


def default_workers() -> int:
    """Loader processes: a card computes beside them and eats more; a CPU that trains has no core to spare for a second."""
    return max(1, min(MAX_WORKERS, owned_cores() - 1)) if torch.cuda.is_available() else 1


def _contradiction(settings: FinetuneSettings) -> str | None:
    if settings.image_size <= 0 or settings.image_size % 32:
        return f"--image-size must be a positive multiple of 32 px, got {settings.image_size}."
    if (settings.val is None) != (settings.val_images is None):
        return "--val and --val-images go together."
    if settings.val is None and (settings.val_every or settings.early_stopping):
        return "what --val-every and --early-stopping measure on needs --val and --val-images."
    if settings.early_stopping and settings.val_every == 0:
        return "--early-stopping needs measurements: --val-every above 0."
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            return f"--{name.replace('_', '-')} is {f'{least:g} or more' if most == math.inf else f'{least:g} to {most:g}'}, got {value:g}."
    if not settings.lr > 0 or min((factor for _, factor in settings.lr_mult), default=0) < 0:
        return "--lr is above 0, and so are factors of --lr-mult, or 0."
    if not 0 < settings.scale_jitter[0] <= settings.scale_jitter[1] < math.inf:
        return "--scale-jitter is two numbers above 0, the smaller one first."
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.finetune", description="Fine-tune an RTMDet-Ins model.", formatter_class=_WithDefaults
    )
    add = parser.add_argument
    data = "COCO JSON, or AzureML annotations JSONL (*.jsonl)"
    add("--train", type=Path, required=True, help=f"annotations to train on: {data}")
    add("--train-images", type=Path, required=True, help="folder of their photos")
    add("--val", type=Path, help=f"annotations to measure on: {data}")
    add("--val-images", type=Path, help="folder of their photos")
    add("--strict", action="store_true", help=STRICT_HELP)
    add("--work-dir", type=Path, required=True, help="where logs and checkpoints go")
    add("--model", choices=MODELS, default="rtmdet-ins_nano", help="network size")
    add("--name", help="name of the trained model (default: the size and its class, or the configuration's name)")
    add(
        "--init-weights",
        help="to start from: a name that `python -m pipeline.model.zoo list` knows, or .pth or .safetensors; layers that fit are loaded",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=10, help="passes over the training photos")
    length.add_argument("--steps", type=int, help="optimizer steps, instead of --epochs")
    add("--batch-size", type=int, default=8, help="photos a step")
    add("--lr", type=float, default=9.67e-5, help="peak learning rate")
    add(
        "--lr-mult",
        type=_prefix_and_factor,
        nargs="*",
        action="extend",
        default=[],
        metavar="LAYER=FACTOR",
        help="learning rate of a part",
    )
    add("--freeze", nargs="*", action="extend", default=[], metavar="LAYER", help="name prefixes of layers that do not train")
    add(
        "--fix-batch-norm",
        nargs="*",
        action="extend",
        default=[],
        metavar="LAYER",
        help="layers that keep their batch-norm statistics",
    )
    restore = (
        "measure batch-norm statistics on so many photos first: for weights that an export folded (jobs/training/batch_norm.py)"
    )
    add("--restore-batch-norm", type=int, default=0, metavar="PHOTOS", help=restore)
    add("--image-size", type=int, default=640, help="side of the square network input, px")
    add("--mosaic", type=float, default=0.5, help="share of samples that are mosaics of four photos, 0..1")
    add("--mosaic-until", type=float, default=0.7, help="part of the run after which mosaics stop, 0..1")
    add("--scale-jitter", type=float, nargs=2, default=[0.5, 2.0], metavar=("MIN", "MAX"), help="long side / image size")
    add("--warmup", type=int, default=100, help="steps of linear warm-up")
    add("--scheduler", choices=("cosine", "constant"), default="cosine", help="learning rate after the warm-up")
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="what makes the steps")
    add("--weight-decay", type=float, default=0.05, help="not applied to norms and biases")
    add(
        "--ema",
        type=float,
        help="momentum of the averaged weights that are saved; 0 turns averaging off (default: 10 over the run's steps, and at least "
        f"{MIN_EMA:g}, so that the average is of the run's last tenth)",
    )
    add("--clip-grad", type=float, default=10.0, help="largest gradient norm; 0 turns clipping off")
    add("--seed", type=int, default=0, help="of everything random")
    add("--precision", choices=("bf16", "fp32", "fp16"), default="bf16", help="fp16 needs a CUDA device")
    add("--save-every", type=int, default=500, help="steps between checkpoints")
    add("--val-every", type=int, help="steps between measurements of AP on --val (default: an epoch); 0: none")
    add("--early-stopping", type=int, default=0, help="stop after so many measurements without a better mask AP; 0: never")
    add("--resume", action="store_true", help="go on from the last checkpoint in --work-dir")
    workers = "loader processes (default: 1; on a machine with a card one for every core but one, at most 8)"
    add("--workers", type=int, default=default_workers(), help=workers)
    add("--log-every", type=int, default=20, help="steps between progress lines")
    return parser


class _WithDefaults(argparse.HelpFormatter):
    """Adds `(default: …)` to the help of each option that has one and does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        untold = action.default not in (None, [], argparse.SUPPRESS) and not isinstance(action.default, bool)
        return f"{action.help} (default: %(default)s)" if untold and "(default" not in (action.help or "") else action.help


def _prefix_and_factor(text: str) -> tuple[str, float]:
    prefix, _, factor = text.partition("=")
    try:
        return prefix, float(factor)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected LAYER=FACTOR such as backbone=0.1, got {text!r}") from error
