"""Rewrites layers with few channels to process several neighbouring pixels at once, in full CPU vectors.

    memory      pixel 0: 8 channels | pixel 1: 8 channels | ...       a vector of 16 lanes is half empty, whatever it computes
    the same    pair 0: 16 channels | pair 1: 16 channels | ...       (H, W, C) is (H, W/2, 2*C) without moving a byte

A convolution on packs of pixels is a convolution with more channels whose weights are mostly zero. A matrix unit has
multiplications to spare; what costs is the activation and the store of each vector. Without such a unit the multiplications cost as
well: measured on AMD Zen 5, RTMDet-Ins-tiny is 9 % faster unpacked, other sizes are as fast as packed. The views between pixels and packs
are free for an engine with static shapes. With an open batch dimension OpenVINO copies at each of them, so pack only for the former.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)

if TYPE_CHECKING:
    from pipeline.model.rtmdet import RawNetwork

LANES = 16
"""Channels of a full vector: 512 bits of float32, which is what activations are computed in."""


class RowNormalisation(nn.Module):
    """The network's normalisation on whole rows of bytes. The division is left to the first convolution's weights.

    Args:
        mean: of the three channels.
        widest: most pixels in a row.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, widest: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean.flatten().repeat(widest))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32."""
        rows = pixels.flatten(2).float()
        rows = rows - self.mean[: rows.shape[2]]
        features: Tensor = rows.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
        return features


class PackedConvModule(nn.Module):
    """mmcv's ConvModule, without norm and groups, on packs of pixels.

    Args:
        part: the module to replace; square kernel and stride, padded by zeros.
        pack: output pixels side by side; the output's width is a multiple of it.
    """

    def __init__(self, part: ConvModule, pack: int) -> None:
        super().__init__()
        self.pack, self.stride = pack, part.conv.stride[0]
        self.conv = pack_convolution(part.conv, pack)
        self.activate = part.activate if part.with_activation else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), as the module that it replaces."""
        packs = _with_channels(features, self.pack * self.stride * features.shape[1])
        outputs = self.activate(self.conv(packs))
        return _with_channels(outputs, outputs.shape[1] // self.pack)


def normalise_rows(network: RawNetwork, *, whole_means: bool) -> None:
    """Rewrite in place: normalise whole rows, full vectors whatever comes after them.

    Args:
        whole_means: for bf16, see `RawNetwork.fold_normalisation`.
    """
    network.fold_normalisation(whole_means=whole_means)
    normalise: Any = network.normalise
    network.normalise = RowNormalisation(normalise.mean, network.input_size)


def pack_layers(network: RawNetwork) -> None:
    """Rewrite in place: pack every layer of the first stages that leaves lanes empty."""
    for stage in (network.backbone.stem, network.backbone.stage1):
        _pack_children(stage)


def pack_convolution(conv: nn.Conv2d, pack: int) -> nn.Module:
    """A convolution from packs of `pack * stride` pixels to packs of `pack` pixels.

    Args:
        conv: one group, square kernel K and stride, padded by zeros, with a bias; (B, C, H, W) to (B, C', H', W').
        pack: pixels of an output pack.
    Returns:
        (B, pack * stride * C, H, W / (pack * stride)) to (B, pack * C', H', W' / pack); channels of the left pixel come first.
    """
    size, stride, reach = conv.kernel_size[1], conv.stride[1], int(conv.padding[1])
    from_pack = pack * stride
    left, right = -(-reach // from_pack), ((pack - 1) * stride + size - 1 - reach) // from_pack
    columns = left + 1 + right
    weight = conv.weight.new_zeros(pack, conv.out_channels, from_pack, conv.in_channels, size, columns)
    for pixel in range(pack):
        for tap in range(size):
            column, position = divmod(pixel * stride + tap - reach, from_pack)
            weight[pixel, :, position, :, :, column + left] = conv.weight[..., tap]
    packed: Any = nn.Conv2d(from_pack * conv.in_channels, pack * conv.out_channels, (size, columns), (stride, 1))
    packed.weight.data, packed.bias.data = weight.flatten(2, 3).flatten(0, 1), cast(Tensor, conv.bias).repeat(pack)
    return nn.Sequential(nn.ZeroPad2d((left, right, reach, reach)), packed).requires_grad_(False)


def _pack_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, ConvModule) and child.conv.groups == 1:
            pack = LANES // math.gcd(LANES, child.conv.out_channels)
            if pack > 1:
                setattr(module, name, PackedConvModule(child, pack))
        else:
            _pack_children(child)


def _with_channels(features: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) to (B, channels, H, W * C / channels): channels last, the same memory."""
    unpacked: Tensor = features.permute(0, 2, 3, 1).flatten(2).unflatten(2, (-1, channels)).permute(0, 3, 1, 2)
    return unpacked
