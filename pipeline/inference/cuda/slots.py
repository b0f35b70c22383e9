"""Slots: the buffers of a batch on host and GPU. There are two: one batch is copied while the other is computed.

host ─copy stream─▶ Slot ─▶ BatchGraphs ─▶ Slot ─copy stream─▶ host
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.cuda.postprocess import FixedResults

SLOTS = 2


class Slot:
    """Buffers of one batch on the host and on the GPU.

    Args:
        device: the GPU.
        max_batch: largest batch, images.
        size: side S of the network input, pixels.
        option_count: numbers per image in `encode_options`.
        results: of any recorded graph, for their shapes.
    Attributes:
        host_pixels: (most, S, S, 3) uint8 and `host_options` (most, C + 9) float32: fill them, then `upload`.
        pixels, image_options: the same on the GPU.
    """

    def __init__(self, device: torch.device, max_batch: int, size: int, option_count: int, results: FixedResults) -> None:
        def both(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return torch.empty(shape, dtype=dtype, pin_memory=True), torch.empty(shape, dtype=dtype, device=device)

        self._cells = results.masks.numel() // len(results.summary)
        self._host_pixels, self.pixels = both((max_batch, size, size, 3), torch.uint8)
        self._host_options, self.image_options = both((max_batch, option_count), torch.float32)
        self._host_summary, self._summary = both((max_batch, results.summary.shape[1]), torch.float32)
        self._masks = torch.empty(max_batch * self._cells, dtype=torch.float16, device=device)
        self.host_pixels: NDArray[np.uint8] = self._host_pixels.numpy()
        self.host_options: NDArray[np.float32] = self._host_options.numpy()
        self._copying = torch.cuda.Stream(device)
        self._uploaded, self._computed = torch.cuda.Event(), torch.cuda.Event()
        self._downloaded = torch.cuda.Event(blocking=True)  # a waiting thread sleeps instead of spinning

    def upload(self, count: int) -> None:
        """Start copying the first `count` images to the GPU."""
        with torch.cuda.stream(self._copying):
            self.pixels[:count].copy_(self._host_pixels[:count], non_blocking=True)
            self.image_options[:count].copy_(self._host_options[:count], non_blocking=True)
            self._uploaded.record()

    def reserve(self) -> list[Tensor]:
        """Allocate page-locked memory of all sizes that masks may need: this takes milliseconds, and PyTorch caches it, in powers of
        two."""
        powers = range(self._masks.nbytes.bit_length() + 1)
        return [torch.empty(2**power, dtype=torch.uint8, pin_memory=True) for power in powers]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within: work of the current stream runs after the upload and before `download`."""
        self._uploaded.wait()
        yield
        self._computed.record()

    def keep(self, results: FixedResults, count: int) -> None:
        """Copy the results of `count` images, on the current stream: the next replay of the graph overwrites them."""
        self._summary[:count].copy_(results.summary[:count])
        cells = count * self._cells
        self._masks[:cells].copy_(results.masks[:cells])

    def download(self, grids_hw: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Wait for the results of as many images as there are mask grids.

        Returns:
            Summaries, valid until the slot's next batch; and the masks of the instances, in page-locked memory of their own, which PyTorch
            reuses when they are freed.
        """
        count = len(grids_hw)
        with torch.cuda.stream(self._copying):
            self._computed.wait()
            self._host_summary[:count].copy_(self._summary[:count], non_blocking=True)
            self._downloaded.record()
        self._downloaded.synchronize()
        summary = self._host_summary[:count].numpy()
        cells = sum(int(found) * math.prod(grid_hw) for found, grid_hw in zip(summary[:, 0], grids_hw, strict=True))
        masks = torch.empty(cells, dtype=torch.float16, pin_memory=True)
        with torch.cuda.stream(self._copying):
            masks.copy_(self._masks[:cells], non_blocking=True)
            self._downloaded.record()
        self._downloaded.synchronize()
        return summary, masks.numpy()


class Slots:
    """A pool of slots.

    Args:
        make: creates a slot; called when it is first needed.
    """

    def __init__(self, make: Callable[[], Slot]) -> None:
        self._make = make
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(None)

    @contextmanager
    def borrow(self) -> Iterator[Slot]:
        """Wait for a free slot; the context may use it."""
        slot = self._free.get()
        try:
            slot = slot or self._make()
            yield slot
        finally:
            self._free.put(slot)

    def fill(self) -> None:
        """Create all slots now; no other caller may use them meanwhile."""
        with ExitStack() as borrowed:
            reserved = [borrowed.enter_context(self.borrow()).reserve() for _ in range(SLOTS)]
            del reserved  # only now: else all slots would reserve the same memory

    def clear(self) -> None:
        """Drop the free slots."""
        for _ in range(self._free.qsize()):
            self._free.get()
            self._free.put(None)
