"""The kernels of `kernels.cu` written in PyTorch, and the self-tests that compare both, alone and in a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.inference.cuda.postprocess import MAX_CANDIDATES, suppress_in_passes
from pipeline.inference.devices import switched
from pipeline.inference.mask_head import packed_mask_logits
from pipeline.model.fusion import CHAINED_KERNELS

INPUT_CHANNELS = 8
"""Channels of the network's input, of which three are used: 16 bytes per pixel in half precision, for tensor cores."""
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative and absolute: some roundings to that precision."""
NETWORK_TOLERANCES = {torch.float16: 0.1, torch.bfloat16: 0.3}
"""Mean difference over mean of a whole network's output. Measured on a CPU: 0.007 and 0.05 at most; what is in the wrong place: 1."""


class Kernels(Protocol):
    """Interface of the kernels; `CudaKernels` documents arguments and results."""

    def normalise(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor: ...
    def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor: ...
    def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor: ...
    def chained_pools(self, features: Tensor) -> None: ...
    def greedy_nms(self, boxes: Tensor, labels: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]: ...
    def packed_mask_logits(
        self, features: Tensor, parameters: Tensor, points_xy: Tensor, strides: Tensor, counts: Tensor, grids_wh: Tensor
    ) -> Tensor: ...
    def fastest(self, ways: Sequence[Callable[[], object]]) -> int: ...


class ReferenceKernels:
    """The same in PyTorch: computed in float32, on any device.

    Args:
        dtype: of the features.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.greedy_nms, self.packed_mask_logits = suppress_in_passes, packed_mask_logits

    def normalise(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """As `CudaKernels.normalise`."""
        three = (pixels.float() - mean) / std
        return functional.pad(three, (0, INPUT_CHANNELS - 3)).to(self._dtype).permute(0, 3, 1, 2)

    def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """As `CudaKernels.bias_silu`."""
        activated = functional.silu(features.float() + bias[:, None, None])
        return (features if out is None else out).copy_(activated if added is None else activated + added)

    def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """As `CudaKernels.depthwise_silu`."""
        window = weights.t().reshape(-1, 1, 5, 5)
        return functional.silu(functional.conv2d(features.float(), window, bias, padding=2, groups=len(bias))).to(self._dtype)

    def chained_pools(self, features: Tensor) -> None:
        """As `CudaKernels.chained_pools`."""
        first, *others = features.chunk(1 + len(CHAINED_KERNELS), dim=1)
        for size, other in zip(CHAINED_KERNELS, others, strict=True):
            other.copy_(functional.max_pool2d(first.float(), size, 1, size // 2))

    def fastest(self, ways: Sequence[Callable[[], object]]) -> int:  # noqa: ARG002  (nothing to choose here)
        """As `CudaKernels.fastest`."""
        return 0


def self_test(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> None:
    """Run each kernel once on random numbers.

    Args:
        kernels: to compare.
        dtype, device: of the kernels.
    Raises:
        ArithmeticError: a kernel differs from the reference; the message names it.
    """
    reference = ReferenceKernels(dtype)
    with without_tf32():
        for name, call in _samples(dtype, device):
            for found, expected in zip(call(kernels), call(reference), strict=True):
                tolerance = TOLERANCES.get(expected.dtype, 0.0)
                difference = (found.float() - expected.float()).abs()
                if not bool((difference <= tolerance * (1 + expected.float().abs())).all()):
                    raise ArithmeticError(f"{name} is off by up to {float(difference.max()):.3g}")


@torch.inference_mode()
def self_test_network(
    rewritten: nn.Module, network: nn.Module, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """Compare a rewritten network with the original one on the same smooth images.

    Args:
        shape: of the pixels, (B, H, W, 3).
        dtype, device: the networks'.
    Raises:
        ArithmeticError: an output differs, or is not a number.
    """
    batch, height, width, _ = shape
    coarse = torch.rand(batch, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    pixels = smooth.byte().contiguous().to(device)  # as an engine's: kernels read memory, whatever the strides
    for index, (found, expected) in enumerate(zip(rewritten(pixels), network(pixels), strict=True)):
        share = float((found.float() - expected.float()).abs().mean() / expected.float().abs().mean())
        if not share <= NETWORK_TOLERANCES[dtype]:
            raise ArithmeticError(f"output {index} of the network is off by {share:.3g} of itself for {batch} images")


def without_tf32() -> AbstractContextManager[None]:
    """Within: a GPU computes float32 without TF32."""
    return switched((torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False))


def _samples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Callable[[Kernels], tuple[Tensor, ...]]]]:
    """Each kernel's name, and a call of it that gives all that it wrote."""
    source = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device=device)

    def features(channels: int) -> Tensor:
        return randn(2, 33, 37, channels).to(dtype).permute(0, 3, 1, 2)

    def between(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=source, device=device)

    pixels, mean, std = between(0, 256, 2, 40, 33, 3).byte(), between(90, 130, 3).float(), between(50, 60, 3).float()
    yield "normalise", lambda kernels: (kernels.normalise(pixels, mean, std),)

    convolved, more, wide, bias = features(24), features(24), features(40), randn(24)

    def bias_silu(kernels: Kernels) -> tuple[Tensor, ...]:
        beside = wide.clone()
        kernels.bias_silu(convolved, bias, more, beside[:, 8:32])
        return beside, kernels.bias_silu(convolved.clone(), bias)

    yield "bias_silu", bias_silu

    weights = randn(25, 24) / 5
    yield "depthwise_silu", lambda kernels: (kernels.depthwise_silu(convolved, weights, bias),)

    def chained_pools(kernels: Kernels) -> tuple[Tensor, ...]:
        parts = more.repeat(1, 4, 1, 1).contiguous(memory_format=torch.channels_last)
        kernels.chained_pools(parts)
        return (parts,)

    yield "chained_pools", chained_pools

    corner, extent = between(0, 60, 2, MAX_CANDIDATES, 2).float(), between(20, 60, 2, MAX_CANDIDATES, 2).float()
    boxes, labels = torch.cat([corner, corner + extent], 2), between(0, 3, 2, MAX_CANDIDATES)
    alive = between(0, 10, 2, MAX_CANDIDATES) > 0
    yield "greedy_nms", lambda kernels: kernels.greedy_nms(boxes, labels, alive)

    counts, grids = torch.tensor([10, 3], device=device), torch.tensor([[37, 21], [17, 33]], device=device)
    prototypes, parameters, points = features(8), randn(20, 169) / 3, between(0, 100, 20, 2).float()
    strides, cells = torch.full((20,), 16.0, device=device), int((counts * grids.prod(1)).sum())
    yield (
        "instance_masks",
        lambda kernels: (kernels.packed_mask_logits(prototypes, parameters, points, strides, counts, grids)[:cells],),
    )
