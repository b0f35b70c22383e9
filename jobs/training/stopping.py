"""Ends of a run that are no signal: no better measurement for a while, or a loss that is not finite any more."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import re
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor


class Diverged(Exception):
    """The training left the finite numbers; what it has computed since cannot be used."""


@HOOKS.register_module()
class StopWithoutProgress(Hook):
    """Ends a run when its best measurement lies so many measurements back.

    It counts from the warm-up's end at the earliest, and not before anything has been found: until then every measurement is 0.

    Not mmengine's EarlyStoppingHook: that one takes less than ten points of AP for no progress, and counts anew when a run goes on.
    Here the step of the best one counts, which every checkpoint knows.

    Args:
        patience: measurements.
        every: steps between them.
        warmup: steps with a rising learning rate.
    """

    def __init__(self, patience: int, every: int, warmup: int) -> None:
        self._patience, self._every, self._warmup = patience, every, warmup

    def after_val(self, runner: Runner) -> None:
        """Look when the best was."""
        measured = runner.message_hub.runtime_info
        if not measured.get("best_score", 0) > 0:
            return
        best = step_of(measured.get("best_ckpt", ""))
        if runner.iter - max(best, self._warmup) >= self._patience * self._every:
            runner.logger.info(f"No better result in {self._patience} measurements since step {best}: the training ends.")
            runner.train_loop.stop_training = True


@HOOKS.register_module()
class RefuseDivergedWeights(Hook):
    """Lets no checkpoint be written whose weights are not finite: it would take the place of a good one."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Look at every weight; priority and order do not matter, averages and plain weights diverge together."""
        check_finite(checkpoint["state_dict"], "weight")


def check_finite(values: Mapping[str, Tensor], kind: str) -> None:
    """Raise Diverged where one of these tensors has a number that is NaN or infinite."""
    for name, value in values.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{kind} {name} is not finite")


def step_of(checkpoint: str) -> int:
    """The step after which mmengine wrote a checkpoint, by its file name; 0 where it tells none."""
    found = re.search(r"iter_(\d+)\.pth$", checkpoint)
    return int(found[1]) if found else 0
