"""Rewrites a trained detector for inference: fewer operations, same outputs.

convolution, batch norm                   ─▶ convolution
parallel max pools 5, 9, 13               ─▶ three 5x5 pools in sequence: same windows, a quarter of the comparisons
`torch.cuda.amp.autocast(enabled=False)`  ─▶ removed: only training needs it; it warns and breaks exporters
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)
from mmdet.models.backbones.csp_darknet import SPPBottleneck  # noqa: E402
from mmdet.models.layers.se_layer import ChannelAttention  # noqa: E402

CHAINED_KERNELS = [5, 9, 13]
"""Pool sizes that three 5x5 pools in sequence can replace: two cover a 9x9 window, three a 13x13 window."""


class Attention(nn.Module):
    """mmdet's ChannelAttention without autocast: weights each channel by a gate computed from the channel means."""

    def __init__(self, attention: ChannelAttention) -> None:
        super().__init__()
        self.fc, self.act = attention.fc, attention.act

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        gate = self.act(self.fc(features.mean((2, 3), keepdim=True)))
        gated: Tensor = features * gate
        return gated


class ChainedPooling(nn.Module):
    """mmdet's SPPBottleneck with its pools in sequence, if their sizes are CHAINED_KERNELS."""

    def __init__(self, bottleneck: SPPBottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2 = bottleneck.conv1, bottleneck.conv2
        sizes = [pool.kernel_size for pool in bottleneck.poolings]
        self.chained = sizes == CHAINED_KERNELS
        self.pools = nn.ModuleList([bottleneck.poolings[0]] * len(sizes)) if self.chained else bottleneck.poolings

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        first = last = self.conv1(features)
        parts = [first]
        for pool in self.pools:
            last = pool(last if self.chained else first)
            parts.append(last)
        joined: Tensor = self.conv2(torch.cat(parts, dim=1))
        return joined


def simplify(detector: nn.Module) -> None:
    """Rewrite a detector in place; it must be in eval mode and cannot be trained afterwards."""
    for part in list(detector.modules()):
        if isinstance(part, ConvModule) and part.with_norm:
            _fold_batch_norm(part)
        for name, child in list(part.named_children()):
            if isinstance(child, ChannelAttention):
                setattr(part, name, Attention(child))
            elif isinstance(child, SPPBottleneck):
                setattr(part, name, ChainedPooling(child))


def _fold_batch_norm(part: ConvModule) -> None:
    """Fold a batch norm into its convolution. Unlike mmengine's fusion, copies a convolution shared by several norms (one per level)."""
    part.conv = fuse_conv_bn_eval(part.conv, part.norm)
    part.with_norm = False
    setattr(part, part.norm_name, nn.Identity())
