"""Ends a run whose loss or weights are not finite."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor


class Diverged(Exception):
    """Training diverged: a loss or weight is not finite."""


@HOOKS.register_module()
class RefuseDivergedWeights(Hook):
    """Refuses to save a checkpoint with weights that are not finite: it would replace a good one."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Check all weights."""
        check_finite(checkpoint["state_dict"], "weight")


def check_finite(values: Mapping[str, Tensor], kind: str) -> None:
    """Raise Diverged if one of these tensors contains NaN or infinity."""
    for name, value in values.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Diverged(f"{kind} {name} is not finite")
