"""Each kernel against PyTorch's operators: compiled for the host, and by `pytest --cuda` on a real GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.inference.cuda import kernels as cuda_kernels
from pipeline.inference.cuda.kernels import DEPTHWISE_ROWS, KERNELS, MAX_POOLED_CELLS, NMS_BOXES, SOURCE, CudaKernels
from pipeline.inference.cuda.postprocess import MAX_CANDIDATES
from pipeline.inference.cuda.reference import TOLERANCES, ReferenceKernels, self_test, without_tf32
from tests.support.cuda_on_host import COMPILER, HostKernels

NVCC = shutil.which("nvcc")
HOST = pytest.param("cpu", marks=pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"))
GPU = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(scope="module", params=list(TOLERANCES), ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=[HOST, GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def kernels(dtype: torch.dtype, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> CudaKernels:
    return CudaKernels(dtype, device) if device.type == "cuda" else HostKernels(dtype, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def reference(dtype: torch.dtype) -> Iterator[ReferenceKernels]:
    """In float32 on a GPU, too."""
    with without_tf32():
        yield ReferenceKernels(dtype)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def features(kernels: CudaKernels, *shape: int) -> Tensor:
    """Channels last, of the kernels' precision, where they run."""
    batch, channels, height, width = shape
    return torch.randn(batch, height, width, channels, device=kernels._device).to(kernels._dtype).permute(0, 3, 1, 2)


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_normalise(kernels, reference, device):
    """Bytes of every value; the five channels beyond are zero. The same from memory in another order."""
    pixels = torch.randint(0, 256, (2, 33, 31, 3), dtype=torch.uint8, device=device)
    mean, std = torch.tensor([103.53, 116.28, 123.675], device=device), torch.tensor([57.375, 57.12, 58.395], device=device)
    found = kernels.normalise(pixels, mean, std)
    assert_near(found, reference.normalise(pixels, mean, std))
    planes = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(kernels.normalise(planes, mean, std), found)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 24, 13, 7), (1, 8, 1, 1), (3, 16, 1, 1), (2, 40, 5, 1)], ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_bias_and_silu(kernels, reference, shape, added):
    """In place, and into the channels from 8 on of something wider, whose other channels stay as they were."""
    channels = shape[1]
    convolved, bias = features(kernels, *shape), torch.randn(channels, device=kernels._device)
    more, wide = features(kernels, *shape) if added else None, features(kernels, shape[0], channels + 16, *shape[2:])
    expected = wide.clone()
    reference.bias_silu(convolved, bias, more, expected[:, 8 : 8 + channels])
    kernels.bias_silu(convolved, bias, more, wide[:, 8 : 8 + channels])
    assert_near(wide, expected)
    dense = convolved.contiguous(memory_format=torch.channels_last)  # some strides of a single pixel may be anything
    assert kernels.bias_silu(dense, bias, more) is dense
    assert_near(dense, expected[:, 8 : 8 + channels])


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (2, 24, 5, 3), (3, 34, 20, 20), (1, 80, 40, 37)], ids=str)
@pytest.mark.parametrize("rows", [*DEPTHWISE_ROWS, None])
def test_depthwise(kernels, reference, monkeypatch, shape, rows):
    """Widths that no four columns fill, pairs that no warp fills; walks of every length, longer than the image too."""
    if rows:
        monkeypatch.setattr(cuda_kernels, "DEPTHWISE_ROWS", (rows,))
    inputs = features(kernels, *shape)
    weights, bias = torch.randn(25, shape[1], device=kernels._device) / 5, torch.randn(shape[1], device=kernels._device)
    assert_near(kernels.depthwise_silu(inputs, weights, bias), reference.depthwise_silu(inputs, weights, bias))


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 16, 20, 20), (1, 24, 3, 9), (1, 8, 39, 39)], ids=str)
def test_pools(kernels, reference, shape):
    """The same values to the bit, infinities and what is no number as well."""
    batch, channels, height, width = shape
    assert height * width <= MAX_POOLED_CELLS
    found = features(kernels, batch, 4 * channels, height, width)
    found[0, 0, 0, 0], found[0, 1, -1, -1], found[0, 2] = torch.nan, torch.inf, -torch.inf
    expected = found.clone()
    kernels.chained_pools(found)
    reference.chained_pools(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [1, 37, MAX_CANDIDATES])
@pytest.mark.parametrize("side", [20, 300])
def test_nms(kernels, reference, device, count, side):
    """Crowds and loose boxes of three labels, some of them out of it."""
    corner, extent = torch.rand(2, count, 2, device=device) * side, torch.rand(2, count, 2, device=device) * 60 + 5
    boxes, labels = torch.cat([corner, corner + extent], 2), torch.randint(3, (2, count), device=device)
    alive = torch.rand(2, count, device=device) < 0.9
    for found, expected in zip(kernels.greedy_nms(boxes, labels, alive), reference.greedy_nms(boxes, labels, alive), strict=True):
        assert torch.equal(found, expected)


def test_nms_of_a_long_chain(kernels, device):
    """Each box overlaps the next one only: every second stays, however many there are."""
    left = torch.arange(NMS_BOXES, device=device, dtype=torch.float32) * 8
    boxes = torch.stack([left, left * 0, left + 36, left * 0 + 36], 1)[None]
    labels = torch.zeros(1, NMS_BOXES, dtype=torch.int64, device=device)
    found, exact = kernels.greedy_nms(boxes, labels, labels == 0)
    assert exact.all()
    assert torch.equal(found[0], torch.arange(NMS_BOXES, device=device) % 2 == 0)


def test_masks(kernels, reference, device):
    """Of three images, the second with no instance; each on its own part of the grid, and nothing after the last."""
    batch, slots, height, width = 3, 12, 20, 27
    counts, grids = torch.tensor([12, 0, 7], device=device), torch.tensor([[27, 20], [3, 3], [24, 11]], device=device)
    inputs, parameters = features(kernels, batch, 8, height, width), torch.randn(batch * slots, 169, device=device)
    points, strides = torch.rand(batch * slots, 2, device=device) * 160, torch.full((batch * slots,), 16.0, device=device)
    arguments = inputs, parameters, points, strides, counts, grids
    cells = int((counts * grids.prod(1)).sum())
    assert_near(kernels.packed_mask_logits(*arguments)[:cells], reference.packed_mask_logits(*arguments)[:cells])


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize(("macros", "oldest"), [([], 75), (["-DBF16"], 80)], ids=["fp16", "bf16"])
def test_they_compile_for_gpus_from_turing_to_blackwell(macros, oldest, tmp_path):
    """By nvcc, whose compiler is NVRTC's: no warnings, no registers spilt to memory, no more shared memory than a block has."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (75, 80, 90, 120) if arch >= oldest]
    strict = ["-Werror=all-warnings", "-Xptxas=-v", *macros, *targets]
    compiled = subprocess.run(
        [str(NVCC), "-fatbin", *strict, "-o", str(tmp_path / "kernels.fatbin"), str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    stores = re.findall(r"(\d+) bytes spill stores", compiled.stderr)
    assert stores == ["0"] * len(KERNELS) * len(targets), compiled.stderr


class OneWrong:
    """The reference, but for one number that one of them writes."""

    def __init__(self, dtype: torch.dtype, wrong: str) -> None:
        self._right, self._wrong = ReferenceKernels(dtype), wrong

    def __getattr__(self, name: str) -> Any:
        right = getattr(self._right, name)

        def spoilt(*arguments: Any) -> Any:
            results = right(*arguments)
            written = arguments[0] if results is None else results[0] if isinstance(results, tuple) else results
            first = (0,) * written.dim()
            written[first] = ~written[first] if written.dtype == torch.bool else written[first] + 1
            return results

        return spoilt if name == self._wrong else right


def test_they_pass_the_self_test(kernels, dtype, device):
    """The self-test raises for a kernel that differs."""
    self_test(kernels, dtype, device)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "instance_masks"] + ["packed_mask_logits"])
def test_a_wrong_kernel_fails_the_self_test(dtype, name):
    """The error names it."""
    with pytest.raises(ArithmeticError, match=name.replace("packed_mask_logits", "instance_masks")):
        self_test(OneWrong(dtype, name), dtype, torch.device("cpu"))


@pytest.mark.cuda
def test_the_faster_of_two(dtype):
    """On a GPU alone: it times what the GPU does."""
    large, small = torch.randn(4096, 4096, device="cuda"), torch.randn(16, 16, device="cuda")
    kernels = CudaKernels(dtype, torch.device("cuda"))
    assert kernels.fastest([lambda: large @ large, lambda: small @ small]) == 1
    assert kernels.fastest([lambda: small @ small, lambda: large @ large]) == 0
