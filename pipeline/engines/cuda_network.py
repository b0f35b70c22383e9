"""RawNetwork rewritten for a card, with the same outputs: fewer passes over memory, and channels that tensor cores take without copies.

convolution, bias, SiLU             ─▶ convolution, then bias and SiLU in one pass
bytes ─▶ float, mean, std, half     ─▶ one pass, with 8 channels of which 5 are zero
12 channels in the stem of -tiny    ─▶ 16: SiLU(0) = 0, and the next layer's weights for them are zero
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)

from pipeline.engines.cuda_kernels import INPUT_CHANNELS, CudaKernels  # noqa: E402
from pipeline.network import RawNetwork  # noqa: E402

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

    def __init__(self, mean: Tensor, std: Tensor, kernels: CudaKernels) -> None:
        super().__init__()
        self.register_buffer("mean", mean.flatten())
        self.register_buffer("std", std.flatten())
        self._kernels = kernels

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 8, H, W)."""
        return self._kernels.normalise(pixels, self.mean, self.std)


class OnePassConvModule(nn.Module):
    """mmcv's ConvModule of a convolution and SiLU, with bias and SiLU in one pass.

    Args:
        part: the module to replace, without norm; its output channels are a multiple of 8.
        kernels: of its precision.
    """

    def __init__(self, part: ConvModule, kernels: CudaKernels) -> None:
        super().__init__()
        self.conv, self.bias = part.conv, part.conv.bias.float()
        self._kernels = kernels

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), channels last in memory."""
        conv = self.conv
        outputs = functional.conv2d(features, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self._kernels.bias_silu(outputs.contiguous(memory_format=torch.channels_last), self.bias)


def use_kernels(network: RawNetwork, kernels: CudaKernels) -> None:
    """Rewrite in place; the network is on the card, in the kernels' precision, channels last."""
    pad_stem(network.backbone.stem, INPUT_CHANNELS)
    normalise: Any = network.normalise
    network.normalise = OnePassNormalisation(normalise.mean, normalise.std, kernels)
    for part in (network.backbone, network.neck, network.head):
        _replace_children(part, kernels)


def pad_stem(stem: nn.Sequential, channels: int) -> None:
    """Widen in place: the first convolution to this many input channels, those after it and between them to multiples of 8.

    Args:
        stem: ConvModules of plain convolutions, one after the other, without norm.
        channels: of the input; those added are zero.
    """
    for place, layer in enumerate(stem):
        conv: Any = layer.conv
        last = place == len(stem) - 1
        wider = conv.out_channels if last else -(-conv.out_channels // EIGHT) * EIGHT
        widened = functional.pad(conv.weight, (0, 0, 0, 0, 0, channels - conv.in_channels, 0, wider - conv.out_channels))
        conv.weight = nn.Parameter(widened.contiguous(memory_format=torch.channels_last), requires_grad=False)
        conv.bias = nn.Parameter(functional.pad(conv.bias, (0, wider - conv.out_channels)), requires_grad=False)
        conv.in_channels, conv.out_channels, channels = channels, wider, wider


def _replace_children(module: nn.Module, kernels: CudaKernels) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, ConvModule):
            if child.with_activation and type(child.activate) is nn.SiLU and child.conv.out_channels % EIGHT == 0:
                setattr(module, name, OnePassConvModule(child, kernels))
        else:
            _replace_children(child, kernels)
