"""Gradient checkpointing: recomputes the backbone's activations in the backward pass instead of storing them.

Not mmengine's `activation_checkpointing`, which uses torch's reentrant variant: it computes no gradient for a part whose input needs
none, such as the one after a frozen stem.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Sequential):
    """A Sequential that stores only its input. Its batch norms run twice per batch, so their running statistics adapt a little faster."""

    def forward(self, features: Any) -> Any:
        """As Sequential."""
        layers: Any = super().forward
        if self.training and torch.is_grad_enabled():
            return checkpoint(layers, features, use_reentrant=False)
        return layers(features)


def recompute_backbone(network: Any) -> int:
    """Make every stage of mmdet's CSPNeXt a `Recomputed`, with the same names and weights; returns how many."""
    stages = [part for name, part in network.backbone.named_children() if name.startswith("stage")]
    for stage in stages:
        if type(stage) is not nn.Sequential:
            raise TypeError(f"expected the backbone's stages to be nn.Sequential, got {type(stage).__name__}")
        stage.__class__ = Recomputed
    return len(stages)
