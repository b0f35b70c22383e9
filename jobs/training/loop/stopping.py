"""Early stopping: ends a run that makes no progress."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import re

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class StopWithoutProgress(Hook):
    """Early stopping: ends a run after `patience` validations without a better one.

    Counting starts after the warm-up, and not before any object was found: until then every result is 0.

    Not mmengine's EarlyStoppingHook: by default it ignores improvements of less than ten points of AP, and restarts counting on resume.
    Here the step of the best validation counts, which every checkpoint stores.

    Args:
        patience: number of validations.
        every: steps between validations.
        warmup: steps with a rising learning rate.
    """

    def __init__(self, patience: int, every: int, warmup: int) -> None:
        self._patience, self._every, self._warmup = patience, every, warmup

    def after_val(self, runner: Runner) -> None:
        """Stop if the best validation is too long ago."""
        measured = runner.message_hub.runtime_info
        if not measured.get("best_score", 0) > 0:
            return
        best = step_of(measured.get("best_ckpt", ""))
        if runner.iter - max(best, self._warmup) >= self._patience * self._every:
            runner.logger.info(f"No better result in {self._patience} measurements since step {best}: the training ends.")
            runner.train_loop.stop_training = True


def step_of(checkpoint: str) -> int:
    """The step of a checkpoint, from mmengine's file name; 0 if it contains none."""
    found = re.search(r"iter_(\d+)\.pth$", checkpoint)
    return int(found[1]) if found else 0
