"""Rewrites RawNetwork for a GPU, with the same outputs: fewer passes over memory, channels for tensor cores.

bytes ─▶ float, mean, std, half       ─▶ one pass, with 8 channels of which 5 are zero
12 channels in the stem of -tiny      ─▶ 16: SiLU(0) = 0, and the next layer's weights for them are zero
convolution, bias, SiLU, sum, concat  ─▶ convolution, then everything else in one pass, to where the concatenation wants it
depthwise convolution, bias, SiLU     ─▶ one pass, where that is faster
three pools, concat                   ─▶ one pass

The kernels were not tested on every GPU, driver and compiler. So they are first compared with PyTorch's operators, each one and the
rewritten network as a whole. If a result differs, PyTorch's operators are used, and the log says why.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmcv.cnn import ConvModule  # noqa: E402  (after the stand-in)
from mmdet.models.layers.csp_layer import CSPLayer, CSPNeXtBlock  # noqa: E402

from pipeline.errors import EngineUnavailable  # noqa: E402
from pipeline.inference.cuda.kernels import DEPTHWISE_TAPS, CudaKernels  # noqa: E402
from pipeline.inference.cuda.one_pass import (  # noqa: E402
    EIGHT,
    OnePassBlock,
    OnePassConvModule,
    OnePassCSPLayer,
    OnePassDepthwise,
    OnePassNormalisation,
    OnePassPooling,
)
from pipeline.inference.cuda.reference import INPUT_CHANNELS, Kernels, self_test, self_test_network  # noqa: E402
from pipeline.model.fusion import ChainedPooling  # noqa: E402
from pipeline.model.rtmdet import RawNetwork  # noqa: E402

logger = logging.getLogger(__name__)


def with_kernels(
    network: RawNetwork, size: int, batches: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[RawNetwork, CudaKernels | None]:
    """Rewrite the network for the kernels and return both; if the kernels do not work, log why and return the network unchanged and None.

    Args:
        network: on the GPU, in `dtype`, channels last.
        size: side of its input, pixels.
        batches: sizes to compare the two networks at.
        dtype: float16 or bfloat16; there are no kernels for float32.
        device: a CUDA device, current.
    Raises:
        EngineUnavailable: a kernel failed and left the GPU unusable for this process.
        torch.OutOfMemoryError: the largest batch does not fit into the GPU's memory.
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
        logger.warning("cuda-core is not installed (%s): the network runs up to a third slower; pip install '.[cuda]'", error)
    except Exception as error:  # whatever NVRTC, the driver or the proof says: nothing that PyTorch could not do without them
        reason = "; ".join(str(error).splitlines()[:3])
        _check_alive(device, reason)
        logger.warning("the CUDA kernels do not work here (%s): the network runs up to a third slower", reason)
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
            f"a CUDA kernel left the GPU unusable for this process ({reason}); "
            "set detector.cuda_kernels: false to run without these kernels, and please report it"
        ) from error


def use_kernels(network: RawNetwork, kernels: Kernels) -> None:
    """Rewrite in place; the network is on the GPU, in the kernels' precision, channels last."""
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
    for index, layer in enumerate(stem):
        conv: Any = layer.conv
        last = index == len(stem) - 1
        wider = conv.out_channels if last else -(-conv.out_channels // EIGHT) * EIGHT
        widened = functional.pad(conv.weight, (0, 0, 0, 0, 0, channels - conv.in_channels, 0, wider - conv.out_channels))
        conv.weight = nn.Parameter(widened.contiguous(memory_format=torch.channels_last), requires_grad=False)
        conv.bias = nn.Parameter(functional.pad(conv.bias, (0, wider - conv.out_channels)), requires_grad=False)
        conv.in_channels, conv.out_channels, channels = channels, wider, wider


def _rewrite_children(module: nn.Module, kernels: Kernels) -> None:
    for name, child in list(module.named_children()):
        setattr(module, name, _rewritten(child, kernels))


def _rewritten(part: nn.Module, kernels: Kernels) -> nn.Module:
    """What takes the module's place: itself if nothing fits."""
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
