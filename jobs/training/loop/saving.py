"""mmengine hooks that save checkpoints: each describes its model, and one is saved at every run's end."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from jobs.command_line import naming


@HOOKS.register_module()
class SavingHook(CheckpointHook):
    """mmengine's CheckpointHook, which here also saves if a run ends early, by early stopping or a signal."""

    best_ckpt_path: str | None

    def before_train(self, runner: Runner) -> None:
        """If the run was moved, use the best checkpoint in this folder: mmengine would delete the one in the other folder."""
        super().before_train(runner)
        if self.save_best and self.best_ckpt_path:
            self.best_ckpt_path = str(Path(self.out_dir) / Path(self.best_ckpt_path).name)
            if is_main_process():  # the run may have been killed while it saved a better one
                _put_back(Path(self.best_ckpt_path))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """mmengine deletes the best checkpoint before it saves the new one: where that fails, the old one comes back."""
        with _kept(Path(self.best_ckpt_path) if self.best_ckpt_path and is_main_process() else None):
            super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Also names the folder where mmengine's own file in it cannot be written."""
        with naming(runner.work_dir):
            super()._save_checkpoint_with_step(runner, step, meta)

    def after_train(self, runner: Runner) -> None:
        """Save, unless the last step was saved."""
        done = runner.iter
        if done and (self.last_ckpt is None or Path(self.last_ckpt).name != self.filename_tmpl.format(done)):
            self._save_checkpoint_with_step(runner, done, {"epoch": runner.epoch, "iter": done})
        super().after_train(runner)


@contextmanager
def _kept(path: Path | None) -> Iterator[None]:
    """Within: the file may be deleted; after an OSError it is there again."""
    if path is None:
        yield
        return
    spare = _spare_of(path)
    with suppress(OSError):  # there is no such file, or its file system has no links
        os.link(path, spare)
    try:
        yield
    except OSError:
        _put_back(path)
        raise
    finally:
        spare.unlink(missing_ok=True)


def _put_back(path: Path) -> None:
    """From its spare, if there is one."""
    with suppress(FileNotFoundError):
        _spare_of(path).replace(path)


def _spare_of(path: Path) -> Path:
    return path.with_suffix(".spare")


@HOOKS.register_module()
class DescribeModelHook(Hook):
    """Writes a description of the model and the run into every checkpoint, as plain JSON types.

    Args:
        model_spec: JSON of what `pipeline.model.checkpoints.load_checkpoint` needs to build the network again. As text, because
            mmengine turns the dicts of its configuration into a class of its own, which our loader rightly refuses.
        lasting: JSON of what `--resume` must find unchanged.
    """

    def __init__(self, model_spec: str, lasting: str) -> None:
        self._described = {"model_spec": json.loads(model_spec), "lasting": json.loads(lasting)}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Add the description to the checkpoint's `meta`."""
        checkpoint["meta"] |= self._described


def step_of(checkpoint: str) -> int:
    """The step of a checkpoint, from mmengine's file name; 0 if it contains none."""
    found = re.search(r"iter_(\d+)\.pth$", checkpoint)
    return int(found[1]) if found else 0
