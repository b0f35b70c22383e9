"""What a network hands to the post-processing, whichever engine ran it. Needs torch, but not mmdet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class RawOutputs(NamedTuple):
    """What the network says about every position, levels one after the other (fine to coarse), rows before columns.

    Attributes:
        class_logits: (B, P, C) float.
        distances: (B, P, 4) float32, left top right bottom of the position's point, network pixels, >= 0.
        kernel_features: (B, P, K) float, input of `KernelProjection`.
        mask_features: (B, 8, H/8, W/8) float, the prototypes that the dynamic convolutions combine.
    """

    class_logits: Tensor
    distances: Tensor
    kernel_features: Tensor
    mask_features: Tensor


class KernelProjection(nn.Module):
    """The last layer of the kernel branch, run on kept positions only.

    Args:
        weight: (levels * 169, K) float32, the 1x1 convolutions of all pyramid levels, one below the other.
        bias: (levels * 169,) float32.
        strides: network pixels between neighbouring positions of each level, fine to coarse.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.strides = strides

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        """(n, K) float features of positions on pyramid levels (n,) int64 to (n, 169) float32 mask parameters."""
        of_all_levels = functional.linear(features.float(), self.weight, self.bias).unflatten(1, (len(self.strides), -1))
        return of_all_levels[torch.arange(len(features), device=features.device), level]
