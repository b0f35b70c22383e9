"""Console output of a run: progress, a line for each validation, and a curve. mmengine's log file in the work folder has everything."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner

from jobs.annotations.datasets import Annotations
from jobs.atomic_write import atomic_file
from jobs.training.loop.saving import step_of

FOR_THE_FILE = re.compile(
    r"\s*-+\s*System environment|Config:|Hooks will be executed|Distributed training is not used|paramwise_options|Exp name|"
    r'init_weights of \w+ has been called|"FileClient" will be deprecated|"HardDiskBackend" is the alias|Iter\(val\)|'
    r"Please make sure that the mlflow server|resumed key: loop_stage|"
    r"The (previous )?best checkpoint|Checkpoints will be saved|Saving checkpoint|Load checkpoint|resumed epoch|Enabling the"
)
"""Messages that only the log file gets: hundreds of lines before the first step, and duplicates of our own lines."""
CURVE_NAME = "curve.png"
MEASURED_AT = "measured_at"
"""mmengine's scalar with the step of each validation, which its own scalars lack."""
MIN_MOVE = 0.03
"""Learning rate times steps, AdamW. A guess between a run that found nothing on the facade photos (0.012) and one that did (0.06)."""


class ConciseRunner(Runner):
    """Shows only progress, validations and checkpoints on the console; saves checkpoints whole."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """The run's logger, with `FOR_THE_FILE` filtered from the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: FOR_THE_FILE.match(record.getMessage()) is None)
        return logger

    def wrap_model(self, model_wrapper_cfg: Any, model: Any) -> Any:
        """Channels last, before torch's DistributedDataParallel looks: changed later, gradients of 3x3 convolutions came back permuted.

        Without a GPU, batch norms are each process's own: torch joins them on GPUs alone.
        """
        model = model if torch.cuda.is_available() else revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model.to(memory_format=torch.channels_last))

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Whole or not at all: a full disk or a kill leaves no damaged checkpoint."""
        with atomic_file(Path(out_dir, filename)) as draft:
            super().save_checkpoint(str(draft.parent), draft.name, *args, **kwargs)


def initialise_silently(network: Any) -> None:
    """Random weights by mmengine, without the hundreds of lines about them that it logs to the console where no run has a log file yet."""
    logger = MMLogger.get_current_instance()
    logger.disabled = True
    try:
        network.init_weights()
    finally:
        logger.disabled = False


@HOOKS.register_module()
class KeepMeasured(Hook):
    """Writes the newest validation result, also by label, and the steps of all validations into the checkpoints saved after it.

    Args:
        objects: JSON, number of objects to train on by label. As text, because mmengine writes its configuration as Python code.
    """

    def __init__(self, objects: str) -> None:
        self._objects = {f"objects/{label}": number for label, number in json.loads(objects).items()}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Before mmengine's CheckpointHook, whose priority is lower."""
        runner.message_hub.update_info("measured", (metrics or {}) | self._objects)
        runner.message_hub.update_scalar(MEASURED_AT, runner.iter)


@HOOKS.register_module()
class ReportMeasurements(Hook):
    """Prints one line per validation, and draws the curve of loss and AP so far.

    Args:
        best_metric: metric that selects the best checkpoint.
    """

    priority = "LOWEST"

    def __init__(self, best_metric: str) -> None:
        self._best_metric = best_metric

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Print box and mask AP in per cent, and the best so far."""
        measured, recorded = metrics or {}, runner.message_hub.runtime_info
        score, step = recorded.get("best_score", 0), step_of(recorded.get("best_ckpt", ""))
        best = f"best {self._best_metric} {per_cent(score)} at step {step}" if score > 0 else f"{self._best_metric} 0 so far"
        runner.logger.info(f"val: box {per_cent(measured.get('box_ap'))} mask {per_cent(measured.get('mask_ap'))}, {best}")
        draw_curve(runner.message_hub.log_scalars, runner.iter, Path(runner.work_dir) / CURVE_NAME)

    def after_train(self, runner: Runner) -> None:
        """Draw the curve with the last steps."""
        draw_curve(runner.message_hub.log_scalars, runner.iter, Path(runner.work_dir) / CURVE_NAME)


def draw_curve(scalars: Any, steps: int, path: Path) -> None:
    """Plot loss by step, and AP by step if there are validations.

    Args:
        scalars: of mmengine's message hub, by name.
        steps: made so far.
    """
    if "train/loss" not in scalars or not is_main_process():
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    losses = scalars["train/loss"].data[0]
    axes.plot(range(steps - len(losses) + 1, steps + 1), losses, color="tab:grey", linewidth=0.8, label="loss")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    if aps := ap_by_step(scalars):
        right = axes.twinx()
        for name, (places, values) in aps.items():
            right.plot(places, [100 * value for value in values], marker=".", label=f"{name} AP")
        right.set(ylabel="AP, per cent", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)  # within, it hides the last AP or the first loss
    figure.savefig(path, dpi=100)


def ap_by_step(scalars: Any) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of "box" and "mask" AP, as far as the steps are known: checkpoints of 0.1.0 lack them."""
    if MEASURED_AT not in scalars:
        return {}
    places = [int(step) for step in scalars[MEASURED_AT].data[0]]
    found = {name: scalars[f"val/{name}_ap"].data[0] for name in ("box", "mask") if f"val/{name}_ap" in scalars}
    return {name: (places[-len(values) :], list(values[-len(places) :])) for name, values in found.items()}


def by_label_table(measured: dict[str, Any]) -> str:
    """Box and mask AP of all objects, of small ones (below 32 x 32 pixels of the photo), and of each label, in per cent; and how many
    objects of a label there were to train on.

    Args:
        measured: as `jobs.training.loop.validation.flat` gives them, with `KeepMeasured`'s numbers of objects.
    """
    labels = [name.removeprefix("mask_ap/") for name in measured if name.startswith("mask_ap/")]
    rows = [("all", "ap"), ("small objects", "ap_small"), *((label, f"ap/{label}") for label in labels)]
    width = max(len(row) for row, _ in rows)
    lines = [f"{'AP by label':{width}}    box   mask  objects trained on"]
    for row, metric in rows:
        box, mask = (per_cent(measured.get(f"{kind}_{metric}")) for kind in ("box", "mask"))
        objects = measured.get(f"objects/{row}", "") if metric == f"ap/{row}" else ""
        lines.append(f"{row:{width}}  {box:>5}  {mask:>5}  {objects:>7}".rstrip())
    return "\n".join(lines)


def what_next(model: Path, val: Annotations | None) -> str:
    """Commands for a finished model.

    Args:
        model: its file, in the work folder.
        val: the set that it was validated on.
    """
    folder, python = model.parent, ("python", "-m")
    steps: list[tuple[str, tuple[object, ...]]] = [
        ("serve it", (*python, "jobs.deploy", model, "--config", "serve_config.yaml")),
        ("for other programs", (*python, "jobs.export", model, "--output", folder / "final.onnx")),
    ]
    if val:
        truth, results = ("--annotations", val.coco_json), folder / "results.json"
        measure = ("jobs.evaluate", *truth, "--images", val.images, "--checkpoint", model, "--save-results", results)
        look = ("jobs.pictures", val.images, *truth, "--results", results, "--output", folder / "pictures")
        steps = [("measure as served", (*python, *measure)), ("see what it finds", (*python, *look)), *steps]
    lines = [f"  {purpose}: {shlex.join(map(str, command))}" for purpose, command in steps]
    return "\n".join([f"Curve: {folder / CURVE_NAME}. Next:", *lines])


def per_cent(number: float | None) -> str:
    """`0.0731` → `7.3`; `-` for None."""
    return "-" if number is None else f"{100 * number:.1f}"


def too_little_movement(lr: float, steps: int, fresh: Sequence[str]) -> str | None:
    """A note if the learning rate and the number of steps are too small for new class channels; else None."""
    if not fresh or lr * steps >= MIN_MOVE:
        return None
    named = f"{', '.join(fresh[:5])}{' …' if len(fresh) > 5 else ''}"
    return (
        f"Note: --lr {lr:g} over {steps:,} steps is too little for classes that start fresh ({named}): expect nothing to be found. "
        f"Train for {MIN_MOVE / lr:,.0f} steps and more, or with a higher --lr."
    )
