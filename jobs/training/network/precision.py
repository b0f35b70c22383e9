"""Precision of training: mixed precision for the layers; a loss or weight that is not finite ends the run.

bfloat16 has float32's range and needs no gradient scaling: autocast suffices, on GPUs and CPUs (AMX or AVX-512
with bf16). mmengine's AmpOptimWrapper, which scales and refuses to run without an accelerator, is for fp16 only. Losses are
computed in float32: Dice sums over thousands of pixels.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch import nn

from pipeline.inference.devices import cpu_computes_bf16

VOLTA, AMPERE = (7, 0), (8, 0)
"""CUDA compute capabilities from which GPUs have matrix units for fp16 and for bf16."""


class Diverged(Exception):
    """Training diverged: a loss or weight is not finite."""


@HOOKS.register_module()
class RefuseDivergedWeights(Hook):
    """Refuses to save a checkpoint with weights that are not finite: it would replace a good one."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Raise Diverged if a weight is NaN or infinite."""
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise Diverged(f"weight {name} is not finite")


class _FiniteLoss:
    """Mixin for an optimizer wrapper: raises instead of making a step with a loss that is not finite."""

    def update_params(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """One backward pass, and the optimizer's step when it is due.

        Raises:
            Diverged: the loss is NaN or infinite; the weights are unchanged.
        """
        if not torch.isfinite(loss).all():
            raise Diverged("the loss is not finite")
        super().update_params(loss, *args, **kwargs)  # type: ignore[misc]  # mmengine's, whichever wrapper follows


@OPTIM_WRAPPERS.register_module()
class Fp32OptimWrapper(_FiniteLoss, OptimWrapper):
    """Computes in float32 throughout."""


@OPTIM_WRAPPERS.register_module()
class Fp16OptimWrapper(_FiniteLoss, AmpOptimWrapper):
    """float16 autocast and gradient scaling; steps with an overflowing gradient are skipped."""


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(_FiniteLoss, OptimWrapper):
    """Runs the forward pass under bfloat16 autocast on the model's device; weights and optimizer stay float32."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Forward passes within are under autocast."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def choose_precision(asked: str) -> tuple[str, str]:
    """Resolve `auto` for this machine's device; other values are returned unchanged.

    Returns:
        `bf16`, `fp16` or `fp32`, and the reason as a phrase for the console.
    """
    if asked != "auto":
        return asked, "as asked for"
    if not torch.cuda.is_available():
        able = cpu_computes_bf16()
        return ("bf16", "this CPU has bf16 instructions") if able else ("fp32", "this CPU has no bf16 instructions")
    generation = torch.cuda.get_device_capability()
    if generation >= AMPERE:
        return "bf16", "this GPU computes in bf16"
    if generation >= VOLTA:
        return "fp16", "this GPU has no bf16 units"
    return "fp32", "this GPU has no units for half precision"


def device_name() -> str:
    """Name of the GPU, or the CPU with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def optim_wrapper_type(precision: str) -> dict[str, Any]:
    """mmengine's optimizer wrapper for `auto`, `fp32`, `bf16` or `fp16` on this machine's device.

    Raises:
        ValueError: fp16 on a CPU, which has no fast float16 and no gradient scaler.
    """
    precision, _ = choose_precision(precision)
    if precision == "fp32":
        return {"type": "Fp32OptimWrapper"}
    if precision == "bf16":
        return {"type": "Bf16OptimWrapper"}
    if precision == "fp16" and torch.cuda.is_available():
        return {"type": "Fp16OptimWrapper", "dtype": "float16"}
    raise ValueError(f"--precision {precision} needs a CUDA device; on a CPU use bf16 or fp32.")
