"""The rewriting for a card, with kernels that do on the CPU what those of `cuda_kernels.cu` do on the card."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.engines import cuda_kernels
from pipeline.engines.cuda_kernels import INPUT_CHANNELS, compile_kernels
from pipeline.engines.cuda_network import EIGHT, OnePassConvModule, OnePassCSPLayer, OnePassDepthwise, OnePassPooling, use_kernels
from pipeline.network import RawNetwork
from tests.pipeline.seeded import SIZE_PX, photo, seeded_checkpoint


class PlainKernels:
    """Says in PyTorch what the kernels are to do."""

    def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        out = features if out is None else out
        assert features.shape[1] == len(bias)
        for part in (features, features if added is None else added):
            assert part.shape == out.shape
            assert part.is_contiguous(memory_format=torch.channels_last)
        for number in (len(bias), out.stride(3), out.storage_offset()):
            assert number % EIGHT == 0
        assert out.stride(1) == 1
        assert out.stride(2) == out.shape[3] * out.stride(3)
        assert out.stride(0) == out.shape[2] * out.stride(2)
        return out.copy_(functional.silu(features + bias[:, None, None]) + (0 if added is None else added))

    def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert weights.is_contiguous()
        window = weights.t().view(-1, 1, 5, 5)
        return functional.silu(functional.conv2d(features, window, bias, padding=2, groups=len(bias)))

    def chained_pools(self, features: Tensor) -> None:
        assert features.is_contiguous(memory_format=torch.channels_last)
        first, *others = features.chunk(4, dim=1)
        for size, other in zip((5, 9, 13), others, strict=True):
            other.copy_(functional.max_pool2d(first, size, 1, size // 2))

    def normalise(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        three = (pixels.float() - mean) / std
        return functional.pad(three, (0, INPUT_CHANNELS - 3)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("size", "layers"), [("nano", (107, 10, 8, 1)), ("tiny", (66, 8, 8, 1))])
def test_the_outputs_are_the_same(size, layers):
    """RTMDet-Ins-tiny has 12 channels in its stem, which become 16; nearly everything is replaced."""
    network = RawNetwork(seeded_checkpoint(size).network(), SIZE_PX)
    rewritten = copy.deepcopy(network).to(memory_format=torch.channels_last)
    use_kernels(rewritten, PlainKernels())
    types = OnePassConvModule, OnePassDepthwise, OnePassCSPLayer, OnePassPooling
    assert tuple(sum(isinstance(part, one) for part in rewritten.modules()) for one in types) == layers
    for convolution in rewritten.backbone.stem:
        assert convolution.conv.in_channels % EIGHT == convolution.conv.out_channels % EIGHT == 0
    pixels = torch.from_numpy(photo((SIZE_PX, SIZE_PX)))[None]
    with torch.inference_mode():
        for expected, found in zip(network(pixels), rewritten(pixels), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_bf16_keeps_its_exact_pixels():
    """`convert` leaves the division to the first weights; the rewriting takes the mean and std that it left."""
    network = RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX).fold_normalisation(whole_means=True)
    rewritten = copy.deepcopy(network).to(memory_format=torch.channels_last)
    use_kernels(rewritten, PlainKernels())
    pixels = torch.from_numpy(photo((SIZE_PX, SIZE_PX)))[None]
    with torch.inference_mode():
        torch.testing.assert_close(rewritten(pixels)[0], network(pixels)[0], rtol=1e-3, atol=1e-2)


def test_a_layer_that_does_not_fit_stays():
    """Of an odd width: PyTorch's own passes take it."""
    network = RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX)
    layer = network.backbone.stage1[0]
    assert not isinstance(layer, OnePassConvModule)
    odd = next(part for part in layer.modules() if hasattr(part, "conv"))
    odd.conv = nn.Conv2d(odd.conv.in_channels, EIGHT + 1, 1)
    use_kernels(network, PlainKernels())
    assert not isinstance(odd, OnePassConvModule)
    assert odd in list(network.modules())


@pytest.mark.parametrize(
    ("fault", "word"), [(ImportError("No module named 'cuda'"), "cuda-core"), (RuntimeError("NVRTC_ERROR"), "NVRTC_ERROR")]
)
def test_without_kernels_the_log_says_so(fault, word, monkeypatch, caplog):
    """And the engine starts all the same."""

    def fail(*_args: object) -> None:
        raise fault

    monkeypatch.setattr(cuda_kernels, "CudaKernels", fail)
    with caplog.at_level(logging.WARNING):
        assert compile_kernels(torch.float16, torch.device("cuda", 0)) is None
    assert word in caplog.text


def test_float32_wants_none():
    """Its engine is for accuracy; nothing is compiled, and nothing logged."""
    assert compile_kernels(torch.float32, torch.device("cuda", 0)) is None
