"""CUDA kernels of `kernels.cu`, compiled when the engine is created. Each does in one pass over memory what PyTorch does in several.

normalise       bytes to the network's input, with channels enough for cuDNN's fast kernels
bias_silu       bias and SiLU after a convolution, the sum with a block's input, and its place among concatenated channels
depthwise_silu  a depthwise convolution of 5x5 with its bias and SiLU
chained_pools   the three max pools of spatial pyramid pooling, side by side with their input
greedy_nms      non-maximum suppression, exact, in one launch instead of some fifty
instance_masks  the dynamic mask head with its hidden layers in registers, of the kept instances only

NVIDIA's `cuda-core` compiles them (by NVRTC, which comes with PyTorch) and launches them; `pipeline.inference.cuda.network.with_kernels`
decides whether they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.inference.cuda.reference import INPUT_CHANNELS
from pipeline.inference.mask_head import first_cells, layers_of
from pipeline.inference.selection import NMS_IOU
from pipeline.types import MASK_STRIDE_PX

SOURCE = Path(__file__).with_suffix(".cu")
KERNELS = ("normalise", "bias_silu", "depthwise_silu", "chained_pools", "greedy_nms", "instance_masks")
THREADS = 256
MASK_THREADS, MASK_CELLS_PER_THREAD = 128, 4  # CELLS_PER_THREAD in the source
MAX_POOLED_CELLS = 1536  # the same in the source
"""Twice as many vectors fill the 48 KB of shared memory per block; a 1248 px input's coarsest level has 1521 cells."""
DEPTHWISE_TAPS, DEPTHWISE_THREADS, DEPTHWISE_COLUMNS = 25, 128, 4  # COLUMNS in the source
DEPTHWISE_ROWS = (16, 8, 4)
"""Rows per thread: with more rows, fewer are loaded twice, but only large images have enough threads then."""
DEPTHWISE_BUSY = 60_000
"""Threads that keep a GPU busy: about 400 for each of a hundred multiprocessors."""
NMS_BOXES = 512  # BOXES in the source
TIMED_RUNS = 10


class CudaKernels:
    """Compiled kernels; each call starts one on the current stream.

    Args:
        dtype: float16 or bfloat16.
        device: a CUDA device, current.
    Raises:
        ImportError: cuda-core is not installed.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        from cuda.core import Device, Program, ProgramOptions

        Device(device.index or 0).set_current()
        defines = ["BF16"] if dtype == torch.bfloat16 else None
        major, minor = torch.cuda.get_device_capability(device)
        options = ProgramOptions(arch=f"sm_{major}{minor}", define_macro=defines)
        compiled = Program(SOURCE.read_text(encoding="ascii"), "c++", options).compile("cubin")
        self._dtype, self._device = dtype, device
        self._kernel = {name: compiled.get_kernel(name) for name in KERNELS}

    def bias_silu(self, features: Tensor, bias: Tensor, added: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """SiLU(features + bias) + added.

        Args:
            features: (B, C, H, W) of this precision, channels last in memory, C a multiple of 8.
            bias: (C,) float32.
            added: as features.
            out: as features, or C channels of something wider, from a multiple of 8 on; the features themselves if it is None.
        """
        channels, vectors = len(bias), features.numel() // 8
        pitch = channels if out is None else out.stride(3)
        out = features if out is None else out
        sizes = _int(channels // 8), _int(pitch // 8), _int(vectors)
        self._start("bias_silu", _blocks(vectors), THREADS, features, bias, 0 if added is None else added, out, *sizes)
        return out

    def depthwise_silu(self, features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """SiLU of a 5x5 convolution of each channel by itself, zeros around the image.

        Args:
            features: (B, C, H, W) of this precision, channels last in memory, C even.
            weights: (25, C) float32, rows of the window before columns.
            bias: (C,) float32.
        """
        batch, channels, height, width = features.shape
        out = torch.empty_like(features)
        columns = channels // 2 * -(-width // DEPTHWISE_COLUMNS)
        enough = (rows for rows in DEPTHWISE_ROWS if columns * -(-height // rows) * batch >= DEPTHWISE_BUSY)
        rows = next(enough, DEPTHWISE_ROWS[-1])
        blocks = -(-columns // DEPTHWISE_THREADS), -(-height // rows), batch
        sizes = map(_int, (height, width, channels // 2, rows))
        self._start("depthwise_silu", blocks, DEPTHWISE_THREADS, features, weights, bias, out, *sizes)
        return out

    def chained_pools(self, features: Tensor) -> None:
        """Max pools of 5x5, 9x9 and 13x13 of the first quarter of the channels, into the other three.

        Args:
            features: (B, 4 * C, H, W) of this precision, channels last in memory, C a multiple of 8; H * W at most `MAX_POOLED_CELLS`.
        """
        batch, channels, height, width = features.shape
        vectors = channels // 4 // 8
        sizes = map(_int, (height, width, vectors))
        self._start("chained_pools", (vectors, batch), THREADS, features, *sizes)

    def greedy_nms(self, boxes: Tensor, labels: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """As `pipeline.inference.cuda.postprocess.suppress_in_passes`, but always exact.

        Args:
            boxes: (B, K, 4) float32 x1 y1 x2 y2, best score first, K at most 512.
            labels: (B, K) int64.
            alive: (B, K) bool, which rows are candidates.
        """
        boxes, labels, alive = boxes.contiguous(), labels.contiguous(), alive.contiguous()
        kept = torch.empty_like(alive)
        count, threshold = _int(boxes.shape[1]), np.float32(NMS_IOU)
        self._start("greedy_nms", len(boxes), NMS_BOXES, boxes, labels, alive, kept, count, threshold)
        return kept, torch.ones_like(kept[:, 0])

    def normalise(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 8, H, W) of this precision, channels last in memory; channels after the third are 0.

        Args:
            mean, std: three float32 numbers.
        """
        batch, height, width, _ = pixels.shape
        out = torch.empty((batch, height, width, INPUT_CHANNELS), dtype=self._dtype, device=pixels.device)
        count = batch * height * width
        self._start("normalise", _blocks(count), THREADS, pixels.contiguous(), mean, std, out, _int(count))
        return out.permute(0, 3, 1, 2)

    def packed_mask_logits(
        self, features: Tensor, parameters: Tensor, points_xy: Tensor, strides: Tensor, counts: Tensor, grids_wh: Tensor
    ) -> Tensor:
        """As `pipeline.inference.mask_head.packed_mask_logits`, with the same arguments; a logit that is NaN counts as outside."""
        batch, _, height, width = features.shape
        slots, cells = len(parameters) // batch, height * width
        first, second_bias, second, third_bias, third = (part.contiguous() for part in layers_of(parameters, points_xy, strides))
        masks = torch.empty(len(parameters) * cells, dtype=torch.float16, device=features.device)
        cells_last = features.permute(0, 2, 3, 1).float().contiguous()
        blocks = len(parameters), -(-cells // (MASK_THREADS * MASK_CELLS_PER_THREAD))
        sizes = _int(slots), _int(width), _int(cells), np.float32(MASK_STRIDE_PX)
        offsets, grids = first_cells(counts, grids_wh), grids_wh.contiguous()
        tensors = cells_last, first, second, second_bias, third, third_bias, counts, offsets, grids, masks
        self._start("instance_masks", blocks, MASK_THREADS, *tensors, *sizes)
        return masks

    def fastest(self, ways: Sequence[Callable[[], object]]) -> int:
        """Time several ways to do the same on the current stream; returns the index of the fastest."""
        times_ms = []
        for way in ways:
            for _ in range(TIMED_RUNS):  # cuDNN chooses an algorithm, and clocks rise
                way()
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            for _ in range(TIMED_RUNS):
                way()
            ended.record()
            ended.synchronize()
            times_ms.append(began.elapsed_time(ended))
        return times_ms.index(min(times_ms))

    def _start(self, kernel: str, blocks: int | tuple[int, ...], threads: int, *arguments: Any) -> None:
        from cuda.core import LaunchConfig, Stream, launch

        stream = Stream.from_handle(torch.cuda.current_stream(self._device).cuda_stream)
        plain = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
        try:
            launch(stream, LaunchConfig(grid=blocks, block=threads), self._kernel[kernel], *plain)
        except Exception as error:  # cuda-core's own type, which says what PyTorch's would: out of memory, or a GPU that is lost
            raise RuntimeError(f"CUDA error: {error}") from error


def _blocks(count: int) -> int:
    return -(-count // THREADS)


def _int(value: int) -> np.int32:
    """A C int; cuda-core takes Python's own for a pointer."""
    return np.int32(value)
