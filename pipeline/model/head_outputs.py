"""What a network hands to the post-processing, whichever engine ran it. Needs torch, but not mmdet."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RawOutputs(NamedTuple):
    """What the network says about every position, levels one after the other (fine to coarse), rows before columns.

    Attributes:
        class_logits: (B, P, C) float.
        distances: (B, P, 4) float32, left top right bottom of the position's point, network pixels, >= 0.
        features: (B, P, C) float, the neck's: what `KernelBranch` looks at.
        mask_features: (B, 8, H/8, W/8) float, the prototypes that the dynamic convolutions combine.
    """

    class_logits: Tensor
    distances: Tensor
    features: Tensor
    mask_features: Tensor
