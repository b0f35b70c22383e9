"""RawNetwork rewritten for a card, with the same outputs: fewer passes over memory, and channels that tensor cores take without copies.

bytes ─▶ float, mean, std, half       ─▶ one pass, with 8 channels of which 5 are zero
12 channels in the stem of -tiny      ─▶ 16: SiLU(0) = 0, and the next layer's weights for them are zero
convolution, bias, SiLU, sum, concat  ─▶ convolution, then everything else in one pass, to where the concatenation wants it
depthwise convolution, bias, SiLU     ─▶ one pass, where that is faster
three pools, concat                   ─▶ one pass

Nobody has tried the kernels on every card, driver and compiler: they must first agree with PyTorch's own operators, each by itself and
the rewritten network as a whole. Where they do not, PyTorch's operators do the work, and the log says why.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)
from mmdet.models.layers.csp_layer import CSPLayer, CSPNeXtBlock  # noqa: E402

from pipeline.errors import EngineUnavailable  # noqa: E402
from pipeline.inference.cuda.kernels import DEPTHWISE_TAPS, MAX_POOLED_CELLS, CudaKernels  # noqa: E402
from pipeline.inference.cuda.reference import INPUT_CHANNELS, Kernels, self_test, self_test_network  # noqa: E402
from pipeline.model.fusion import ChainedPooling  # noqa: E402
from pipeline.model.rtmdet import RawNetwork  # noqa: E402

log = logging.getLogger(__name__)
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
    """The same for a depthwise convolution of 5x5, which may be one pass altogether, where that is faster.

    cuDNN and a kernel of our own are timed once for each shape, as cuDNN times its own algorithms: which of them wins differs by card.

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
        """(B, C, H, W) to the same shape, to `out` where there is one."""
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
            for place, pool in enumerate(self.pools, 1):
                last = parts[:, place * channels : (place + 1) * channels].copy_(pool(last))
        outputs: Tensor = self.conv2(parts)
        return outputs


def with_kernels(
    network: RawNetwork, size: int, batches: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[RawNetwork, CudaKernels | None]:
    """The network rewritten for the kernels, and these; as it is and None where they do not work, with a line in the log that says why.

    Args:
        network: on the card, in `dtype`, channels last.
        size: side of its input, pixels.
        batches: sizes to compare the two networks at.
        dtype: float16 or bfloat16; there are no kernels for float32.
        device: a CUDA device, current.
    Raises:
        EngineUnavailable: a kernel failed in a way that leaves the card unusable for this process.
        torch.OutOfMemoryError: the largest batch does not fit; that is no fault of the kernels.
    """
    if dtype == torch.float32:
        return network, None
    try:
        kernels = CudaKernels(dtype, device)
        self_test(kernels, dtype, device)
        rewritten = copy.deepcopy(network)
        use_kernels(rewritten, kernels)
        for batch in batches:
            self_test_network(rewritten, network, (batch, size, size, 3), dtype, device)
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        log.warning("cuda-core is not here (%s): the network runs up to a third slower; pip install '.[cuda]'", error)
    except Exception as error:  # whatever NVRTC, the driver or the proof says: nothing that PyTorch could not do without them
        reason = "; ".join(str(error).splitlines()[:3])
        _check_alive(device, reason)
        log.warning("the CUDA kernels do not work here (%s): the network runs up to a third slower", reason)
    else:
        return rewritten, kernels
    return network, None


def _check_alive(device: torch.device, reason: str) -> None:
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        raise EngineUnavailable(
            f"a CUDA kernel made the card unusable for this process ({reason}); "
            "set detector.cuda_kernels: false to run without these kernels, and please report it"
        ) from error


def use_kernels(network: RawNetwork, kernels: Kernels) -> None:
    """Rewrite in place; the network is on the card, in the kernels' precision, channels last."""
    pad_stem(network.backbone.stem, INPUT_CHANNELS)
    normalise: Any = network.normalise
    network.normalise = OnePassNormalisation(normalise.mean, normalise.std, kernels)
    for part in (network.backbone, network.neck, network.head):
        _rewrite_children(part, kernels)


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


def _rewrite_children(module: nn.Module, kernels: Kernels) -> None:
    for name, child in list(module.named_children()):
        setattr(module, name, _rewritten(child, kernels))


def _rewritten(part: nn.Module, kernels: Kernels) -> nn.Module:
    """What takes the module's place: itself where nothing fits."""
    if isinstance(part, ConvModule):
        return _rewritten_convolution(part, kernels)
    _rewrite_children(part, kernels)
    if isinstance(part, CSPNeXtBlock) and isinstance(part.conv2.pointwise_conv, OnePassConvModule):
        return OnePassBlock(part)
    if (
        isinstance(part, CSPLayer)
        and _all_one_pass(part.main_conv, part.short_conv)
        and isinstance(part.blocks[-1], OnePassBlock)
    ):
        return OnePassCSPLayer(part)
    if isinstance(part, ChainedPooling) and part.chained and _all_one_pass(part.conv1):
        return OnePassPooling(part, kernels)
    return part


def _rewritten_convolution(part: nn.Module, kernels: Kernels) -> nn.Module:
    conv: Any = part.conv
    if not part.with_activation or type(part.activate) is not nn.SiLU or conv.out_channels % EIGHT:
        return part
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.weight[0, 0].numel() == DEPTHWISE_TAPS
    if depthwise and conv.stride == (1, 1) and conv.padding == (2, 2) and conv.dilation == (1, 1):
        return OnePassDepthwise(part, kernels)
    return OnePassConvModule(part, kernels)


def _all_one_pass(*layers: nn.Module) -> bool:
    return all(isinstance(layer, OnePassConvModule) for layer in layers)


def _channels_last(features: Tensor) -> Tensor:
    return features.contiguous(memory_format=torch.channels_last)


def _empty_like(features: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W), channels last in memory."""
    batch, _, height, width = features.shape
    return torch.empty((batch, height, width, channels), dtype=features.dtype, device=features.device).permute(0, 3, 1, 2)
