"""The rewriting for a GPU, with kernels that do on the CPU what those of `kernels.cu` do on the GPU."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import EngineUnavailable
from pipeline.inference.cuda import network as cuda_network
from pipeline.inference.cuda.network import use_kernels, with_kernels
from pipeline.inference.cuda.one_pass import EIGHT, OnePassConvModule, OnePassCSPLayer, OnePassDepthwise, OnePassPooling
from pipeline.inference.cuda.reference import ReferenceKernels, self_test_network
from pipeline.model.rtmdet import RawNetwork
from tests.support.cuda_on_host import COMPILER, HostKernels
from tests.support.seeded import SIZE_PX, photo, seeded_checkpoint


class PlainKernels(ReferenceKernels):
    """Also insists on what the kernels insist on."""

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        target = features if out is None else out
        assert features.shape[1] == len(bias)
        for part in (features, features if added is None else added):
            assert part.shape == target.shape
            assert part.is_contiguous(memory_format=torch.channels_last)
        for number in (len(bias), target.stride(3), target.storage_offset()):
            assert number % EIGHT == 0
        assert target.stride(1) == 1
        assert target.stride(2) == target.shape[3] * target.stride(3)
        assert target.stride(0) == target.shape[2] * target.stride(2)
        return super().bias_silu(features, bias, added, out)

    def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert weights.is_contiguous()
        return super().depthwise_silu(features, weights, bias)

    def chained_pools(self, features: Tensor) -> None:
        assert features.is_contiguous(memory_format=torch.channels_last)
        super().chained_pools(features)


@pytest.mark.parametrize(("size", "layers"), [("nano", (117, 10, 8, 1)), ("tiny", (74, 8, 8, 1))])
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


@pytest.mark.parametrize("fastest", [0, 1])
def test_the_faster_way_is_taken(fastest):
    """Chosen once for each shape; either gives the same."""
    chosen = []

    class Timed(PlainKernels):
        def fastest(self, ways: Sequence[Callable[[], object]]) -> int:
            one, other = (way() for way in ways)
            torch.testing.assert_close(one, other)
            chosen.append(one.shape)
            return fastest

    block = RawNetwork(seeded_checkpoint("tiny").network(), SIZE_PX).backbone.stage2[1].blocks[0]
    layer = OnePassDepthwise(block.conv2.depthwise_conv, Timed())
    inputs = [torch.randn(batch, layer.weights.shape[1], 9, 9) for batch in (1, 2, 1)]
    with torch.inference_mode():
        for features in inputs:
            torch.testing.assert_close(layer(features), block.conv2.depthwise_conv(features), rtol=1e-4, atol=1e-4)
    assert chosen == [one.shape for one in inputs[:2]]


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


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_the_kernels_themselves_fit_in(tmp_path):
    """Compiled for the host: they write where the next layer reads, in half precision."""
    network = (
        RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX).convert(torch.float16).to(memory_format=torch.channels_last)
    )
    rewritten = copy.deepcopy(network)
    use_kernels(network, ReferenceKernels(torch.float16))
    use_kernels(rewritten, HostKernels(torch.float16, tmp_path))
    pixels = torch.from_numpy(np.stack([photo((SIZE_PX, SIZE_PX), seed) for seed in range(2)]))
    with torch.inference_mode():
        expected, found = network(pixels), rewritten(pixels)
    torch.testing.assert_close(found.class_logits.sigmoid(), expected.class_logits.sigmoid(), rtol=0, atol=0.02)
    assert (found.distances - expected.distances).abs().mean() < 0.1  # px; a few of fp16's roundings come out far apart
    torch.testing.assert_close(found.mask_features, expected.mask_features, rtol=0.05, atol=0.05)


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(scope="module")
def plain():
    return RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX).convert(torch.float16).to(memory_format=torch.channels_last)


class Kernels(ReferenceKernels):
    """Right ones, made as `CudaKernels` are."""

    def __init__(self, dtype: torch.dtype, _device: torch.device) -> None:
        super().__init__(dtype)


def tried(plain, device=CPU, dtype=torch.float16):
    return with_kernels(plain, SIZE_PX, (1, 2), dtype, device)


def test_kernels_that_prove_right_are_used(plain, monkeypatch):
    """In a copy: the network itself is what they are compared with."""
    monkeypatch.setattr(cuda_network, "CudaKernels", Kernels)
    network, kernels = tried(plain)
    assert isinstance(kernels, Kernels)
    assert any(isinstance(part, OnePassConvModule) for part in network.modules())
    assert not any(isinstance(part, OnePassConvModule) for part in plain.modules())


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_kernels_themselves_prove_right(dtype, tmp_path, monkeypatch):
    """With the inputs of the start's tests, whose memory they read as it is; a network that depends on its input."""
    monkeypatch.setattr(cuda_network, "CudaKernels", lambda dtype, _device: HostKernels(dtype, tmp_path))
    network = RawNetwork(seeded_checkpoint("tiny").network(), SIZE_PX).convert(dtype).to(memory_format=torch.channels_last)
    assert tried(network, dtype=dtype)[1] is not None


@pytest.mark.parametrize(
    ("fault", "word"), [(ImportError("No module named 'cuda'"), "cuda-core"), (RuntimeError("NVRTC_ERROR"), "NVRTC_ERROR")]
)
def test_without_kernels_the_log_says_so(fault, word, plain, monkeypatch, caplog):
    """And the engine starts all the same."""

    def fail(*_args: object) -> None:
        raise fault

    monkeypatch.setattr(cuda_network, "CudaKernels", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    with caplog.at_level(logging.WARNING):
        assert tried(plain, GPU) == (plain, None)
    assert word in caplog.text


def test_a_kernel_that_breaks_the_gpu_is_reported(plain, monkeypatch):
    """PyTorch's operators fail there too, so it is an error that says what to do."""

    def fail(*_args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda_network, "CudaKernels", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(EngineUnavailable, match=r"illegal memory access .*detector\.cuda_kernels: false"):
        tried(plain, GPU)


def test_a_full_gpu_is_not_a_fault_of_the_kernels(plain, monkeypatch):
    def fail(*_args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_network, "CudaKernels", fail)
    with pytest.raises(torch.OutOfMemoryError):
        tried(plain, GPU)


def test_kernels_that_are_wrong_are_not_used(plain, monkeypatch, caplog):
    """Whatever the reason: the log names the kernel, and the engine starts with PyTorch's operators."""

    class Wrong(Kernels):
        def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
            return super().depthwise_silu(features, weights.flip(0), bias)

    monkeypatch.setattr(cuda_network, "CudaKernels", Wrong)
    with caplog.at_level(logging.WARNING):
        assert tried(plain) == (plain, None)
    assert "depthwise_silu is off" in caplog.text


@pytest.mark.parametrize("fault", [0.0, float("nan")], ids=["wrong numbers", "not a number"])
def test_a_network_that_comes_out_wrong_is_not_used(fault, plain, monkeypatch, caplog):
    """Where each kernel is right on its samples, and not on what this network gives it."""

    class WrongWhenLarge(Kernels):
        def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
            right = super().bias_silu(features, bias, added, out)
            return right if features.shape[2] < SIZE_PX // 4 else right.mul_(fault)

    monkeypatch.setattr(cuda_network, "CudaKernels", WrongWhenLarge)
    with caplog.at_level(logging.WARNING):
        assert tried(plain) == (plain, None)
    assert "of the network is off by" in caplog.text


def test_the_self_test_allows_rounding_errors_of_bf16():
    """Those of the embedded model too, which has few channels: the self-test raises for larger ones."""
    network = (
        RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX).convert(torch.bfloat16).to(memory_format=torch.channels_last)
    )
    rewritten = copy.deepcopy(network)
    use_kernels(rewritten, ReferenceKernels(torch.bfloat16))
    self_test_network(rewritten, network, (2, SIZE_PX, SIZE_PX, 3), torch.bfloat16, CPU)


def test_float32_wants_none(plain):
    """Its engine is for accuracy; nothing is compiled, and nothing logged."""
    assert tried(plain, GPU, torch.float32) == (plain, None)
