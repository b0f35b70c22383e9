"""The network's outputs, the input of the post-processing; the same for all engines. Needs torch, but not mmdet."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RawOutputs(NamedTuple):
    """The network's outputs for all P positions: level after level (fine to coarse), in each row by row.

    Attributes:
        class_logits: (B, P, C) float.
        distances: (B, P, 4) float32, from the position's point to the box's left, top, right and bottom, network pixels, >= 0.
        features: (B, P, F) float, of the neck; input of `KernelBranch`.
        mask_features: (B, 8, H/8, W/8) float, the prototypes that the dynamic convolutions combine.
    """

    class_logits: Tensor
    distances: Tensor
    features: Tensor
    mask_features: Tensor
