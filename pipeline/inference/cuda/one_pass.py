"""Modules that do everything after a convolution in one pass over memory; `network.py` inserts them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)
from mmdet.models.layers.csp_layer import CSPLayer, CSPNeXtBlock  # noqa: E402

from pipeline.inference.cuda.kernels import MAX_POOLED_CELLS  # noqa: E402
from pipeline.inference.cuda.reference import Kernels  # noqa: E402
from pipeline.model.fusion import ChainedPooling  # noqa: E402

EIGHT = 8
"""Channels in 16 bytes of half precision, which is what one thread of a kernel moves."""


class OnePassNormalisation(nn.Module):
    """The network's normalisation by `CudaKernels.normalise`.

    Args:
        mean, std: of the channels, any shape.
        kernels: of the network's precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, kernels: Kernels) -> None:
        super().__init__()
        self.register_buffer("mean", mean.flatten())
        self.register_buffer("std", std.flatten())
        self._kernels = kernels

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 8, H, W)."""
        return self._kernels.normalise(pixels, self.mean, self.std)


class OnePassConvModule(nn.Module):
    """mmcv's ConvModule of a convolution and SiLU, with all that comes after the convolution in one pass.

    Args:
        part: the module to replace, without norm; its output channels are a multiple of 8.
        kernels: of its precision.
    """

    def __init__(self, part: ConvModule, kernels: Kernels) -> None:
        super().__init__()
        self.conv, self.bias = part.conv, part.conv.bias.float()
        self._kernels = kernels

    def forward(self, features: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), channels last in memory; `added` and `out` as `CudaKernels.bias_silu` takes them."""
        conv = self.conv
        outputs = functional.conv2d(features, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self._kernels.bias_silu(_channels_last(outputs), self.bias, added, out)


class OnePassDepthwise(nn.Module):
    """As OnePassConvModule for a depthwise convolution of 5x5, which runs as a single kernel if that is faster.

    cuDNN and a kernel of our own are timed once for each shape, as cuDNN times its own algorithms: which of them wins differs by GPU.

    Args:
        part: the module to replace, without norm.
        kernels: of its precision.
    """

    def __init__(self, part: ConvModule, kernels: Kernels) -> None:
        super().__init__()
        self.in_two = OnePassConvModule(part, kernels)
        self.weights = part.conv.weight.float().flatten(1).t().contiguous()
        self._kernels = kernels
        self._fastest: dict[torch.Size, int] = {}

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, channels last in memory."""
        ways = self._in_one, self.in_two
        features = _channels_last(features)
        if features.shape not in self._fastest:
            self._fastest[features.shape] = self._kernels.fastest([partial(way, features) for way in ways])
        return ways[self._fastest[features.shape]](features)

    def _in_one(self, features: Tensor) -> Tensor:
        return self._kernels.depthwise_silu(features, self.weights, self.in_two.bias)


class OnePassBlock(nn.Module):
    """mmdet's CSPNeXtBlock, whose last pass adds its input.

    Args:
        block: the module to replace, its layers replaced already.
    """

    def __init__(self, block: CSPNeXtBlock) -> None:
        super().__init__()
        self.conv1, self.conv2, self.add_identity = block.conv1, block.conv2, block.add_identity

    def forward(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same shape, to `out` if there is one."""
        inner = self.conv2.depthwise_conv(self.conv1(features))
        outputs: Tensor = self.conv2.pointwise_conv(inner, features if self.add_identity else None, out)
        return outputs


class OnePassCSPLayer(nn.Module):
    """mmdet's CSPLayer, whose two ways write side by side.

    Args:
        layer: the module to replace, its blocks and layers replaced already.
    """

    def __init__(self, layer: CSPLayer) -> None:
        super().__init__()
        self.main_conv, self.short_conv, self.final_conv = layer.main_conv, layer.short_conv, layer.final_conv
        self.blocks = layer.blocks
        self.attention = layer.attention if layer.channel_attention else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        channels = self.main_conv.conv.out_channels
        both = _empty_like(features, 2 * channels)
        self.short_conv(features, None, both[:, channels:])
        *blocks, last = self.blocks
        main = self.main_conv(features)
        for block in blocks:
            main = block(main)
        last(main, both[:, :channels])
        outputs: Tensor = self.final_conv(self.attention(both))
        return outputs


class OnePassPooling(nn.Module):
    """`pipeline.model.fusion.ChainedPooling`, whose pools write beside their input.

    Args:
        pooling: the module to replace, its layers replaced already.
        kernels: of its precision.
    """

    def __init__(self, pooling: ChainedPooling, kernels: Kernels) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pools = pooling.conv1, pooling.conv2, pooling.pools
        self._kernels = kernels

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        channels = self.conv1.conv.out_channels
        parts = _empty_like(features, (1 + len(self.pools)) * channels)
        last = self.conv1(features, None, parts[:, :channels])
        if features.shape[2] * features.shape[3] <= MAX_POOLED_CELLS:
            self._kernels.chained_pools(parts)
        else:
            for index, pool in enumerate(self.pools, 1):
                last = parts[:, index * channels : (index + 1) * channels].copy_(pool(last))
        outputs: Tensor = self.conv2(parts)
        return outputs


def _channels_last(features: Tensor) -> Tensor:
    return features.contiguous(memory_format=torch.channels_last)


def _empty_like(features: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W), channels last in memory."""
    batch, _, height, width = features.shape
    return torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device).permute(0, 3, 1, 2)
