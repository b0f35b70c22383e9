"""Each kernel on a real card against what PyTorch makes of the same numbers in float32. Skipped without a card.

pytest --cuda
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.engines.cuda_kernels import CudaKernels
from pipeline.fixed_postprocess import MOST_CANDIDATES, suppress_in_passes
from pipeline.mask_head import packed_mask_logits

pytestmark = pytest.mark.cuda
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""A rounding to that precision, and a little for sums in another order."""


@pytest.fixture(scope="module", params=list(TOLERANCE), ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def kernels(dtype: torch.dtype) -> CudaKernels:
    return CudaKernels(dtype, torch.device("cuda:0"))


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Also: float32 references in float32."""
    torch.manual_seed(0)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def features(dtype: torch.dtype, *shape: int) -> Tensor:
    """Channels last, on the card."""
    return torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_normalise(kernels, dtype):
    """Bytes of every value; the five channels beyond are zero."""
    pixels = torch.randint(0, 256, (2, 33, 31, 3), dtype=torch.uint8, device="cuda")
    mean, std = torch.tensor([103.53, 116.28, 123.675], device="cuda"), torch.tensor([57.375, 57.12, 58.395], device="cuda")
    found = kernels.normalise(pixels, mean, std)
    assert_near(found[:, :3], ((pixels.float() - mean) / std).permute(0, 3, 1, 2), dtype)
    assert (found[:, 3:] == 0).all()


@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_bias_and_silu(kernels, dtype, added):
    """In place, and into channels 8 to 31 of 40, whose neighbours stay as they were."""
    convolved, bias = features(dtype, 2, 24, 13, 7), torch.randn(24, device="cuda")
    more = features(dtype, 2, 24, 13, 7) if added else None
    expected = functional.silu(convolved.float() + bias[:, None, None]) + (0 if more is None else more)
    wide = torch.full((2, 13, 7, 40), 9.0, dtype=dtype, device="cuda").permute(0, 3, 1, 2)
    kernels.bias_silu(convolved, bias, more, wide[:, 8:32])
    assert_near(wide[:, 8:32], expected, dtype)
    assert (wide[:, :8] == 9).all()
    assert (wide[:, 32:] == 9).all()
    assert kernels.bias_silu(convolved, bias, more) is convolved
    assert_near(convolved, expected, dtype)


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (2, 24, 5, 3), (3, 34, 20, 20), (1, 80, 40, 37), (8, 160, 80, 80)], ids=str)
def test_depthwise(kernels, dtype, shape):
    """From one cell to enough for the longest walk; widths that no four columns fill, pairs that no warp fills."""
    inputs = features(dtype, *shape)
    weights, bias = torch.randn(25, shape[1], device="cuda") / 5, torch.randn(shape[1], device="cuda")
    window = weights.t().reshape(-1, 1, 5, 5)
    expected = functional.silu(functional.conv2d(inputs.float(), window, bias, padding=2, groups=shape[1]))
    assert_near(kernels.depthwise_silu(inputs, weights, bias), expected, dtype)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 16, 20, 20), (1, 24, 3, 9), (2, 8, 39, 39)], ids=str)
def test_pools(kernels, dtype, shape):
    """The same values to the bit, infinities and what is no number as well."""
    batch, channels, height, width = shape
    all_parts = features(dtype, batch, 4 * channels, height, width)
    all_parts[0, 0, 0, 0], all_parts[0, 1, -1, -1], all_parts[0, 2] = torch.nan, torch.inf, -torch.inf
    first, *found = all_parts.chunk(4, dim=1)
    expected = [functional.max_pool2d(first.float(), size, 1, size // 2) for size in (5, 9, 13)]
    kernels.chained_pools(all_parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [1, 37, MOST_CANDIDATES])
@pytest.mark.parametrize("side", [20.0, 300.0])
def test_nms(kernels, count, side):
    """Crowds and loose boxes of three labels, some of them out of it."""
    corner, extent = torch.rand(4, count, 2, device="cuda") * side, torch.rand(4, count, 2, device="cuda") * 60 + 5
    boxes, labels = torch.cat([corner, corner + extent], 2), torch.randint(3, (4, count), device="cuda")
    alive = torch.rand(4, count, device="cuda") < 0.9
    expected, settled = suppress_in_passes(boxes, labels, alive)
    assert settled.all()
    found, exact = kernels.greedy_nms(boxes, labels, alive)
    assert exact.all()
    assert torch.equal(found, expected)


def test_nms_of_a_long_chain(kernels):
    """Each box overlaps the next one only: every second stays, however many there are."""
    left = torch.arange(MOST_CANDIDATES, device="cuda", dtype=torch.float32) * 8
    boxes = torch.stack([left, left * 0, left + 36, left * 0 + 36], 1)[None]
    labels = torch.zeros(1, MOST_CANDIDATES, dtype=torch.int64, device="cuda")
    found, exact = kernels.greedy_nms(boxes, labels, labels == 0)
    assert exact.all()
    assert torch.equal(found[0], torch.arange(MOST_CANDIDATES, device="cuda") % 2 == 0)


def test_masks(kernels):
    """Of three images, the second with no instance; each on its own part of the grid."""
    batch, slots, height, width = 3, 100, 20, 24
    counts, grids = torch.tensor([100, 0, 7], device="cuda"), torch.tensor([[24, 20], [3, 3], [24, 11]], device="cuda")
    inputs, kernel = features(torch.float16, batch, 8, height, width), torch.randn(batch * slots, 169, device="cuda")
    points, strides = torch.rand(batch * slots, 2, device="cuda") * 160, torch.full((batch * slots,), 16.0, device="cuda")
    arguments = inputs, kernel, points, strides, counts, grids
    cells = int((counts * grids.prod(1)).sum())
    found, expected = kernels.packed_mask_logits(*arguments), packed_mask_logits(*arguments)
    torch.testing.assert_close(found[:cells].float(), expected[:cells].float(), rtol=5e-3, atol=5e-2)
