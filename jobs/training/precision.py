"""Number formats of a training step: which layers compute in half precision, and what must not.

bfloat16 has float32's range and needs no gradient scaling: autocast alone is enough, on a card as on a CPU (AMX or AVX-512
with bf16). mmengine's AmpOptimWrapper, which scales and refuses to run without an accelerator, is for fp16 only. Losses are
computed in float32: Dice sums over thousands of pixels.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import OptimWrapper
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Runs the forward pass under bfloat16 autocast on the model's device; weights and optimizer stay float32."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def optim_wrapper_type(precision: str) -> dict[str, Any]:
    """mmengine's optimizer wrapper for `fp32`, `bf16` or `fp16` on the device that is here.

    Raises:
        ValueError: fp16 on a CPU, which has no fast float16 and no gradient scaler.
    """
    if precision == "fp32":
        return {"type": "OptimWrapper"}
    if precision == "bf16":
        return {"type": "Bf16OptimWrapper"}
    if precision == "fp16" and torch.cuda.is_available():
        return {"type": "AmpOptimWrapper", "dtype": "float16"}
    raise ValueError(f"--precision {precision} needs a CUDA device; on a CPU use bf16 or fp32.")


def keep_losses_in_fp32(network: Any) -> None:
    """Make the head compute its losses in float32, whatever precision its layers ran in."""
    head = network.bbox_head
    loss_by_feat, device = head.loss_by_feat, next(network.parameters()).device.type

    def loss_in_fp32(*feats: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return loss_by_feat(*_to_fp32(feats), **kwargs)

    head.loss_by_feat = loss_in_fp32


def _to_fp32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to_fp32(part) for part in value)
    return value
