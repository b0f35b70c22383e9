"""Pieces of the CUDA engine that keep the card busy.

    host ─copy stream─▶ Slot ─▶ BatchGraphs: one recorded CUDA graph for each batch size ─▶ Slot ─copy stream─▶ host

- A `Slot` is one batch's room on both sides. There are two: one batch travels to or from the card while the other is computed.
- A graph holds network and post-processing. Replaying it is one launch instead of some hundreds, and the host waits for nothing in between.
  Where one cannot be recorded, its operators are launched each time.
"""

from __future__ import annotations

import gc
import logging
import math
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.cuda.postprocess import FixedResults
from pipeline.inference.devices import switched
from pipeline.model.head_outputs import RawOutputs

log = logging.getLogger(__name__)
WARM_UP_RUNS = 3
"""Runs before recording: cuDNN picks its algorithms and libraries allocate their work space (PyTorch's CUDA graph notes)."""
SLOTS = 2

Compute = Callable[[Tensor, Tensor], tuple[RawOutputs, FixedResults]]
"""Pixels (B, S, S, 3) uint8 and wishes (B, C + 9) to what the network says and what was found, without waiting for the card."""


def default_buckets(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4 ... and max_batch itself."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


class Slot:
    """Room for one batch on the host and on the card.

    Args:
        device: the card.
        most: images of the largest batch.
        size: side S of the network input, pixels.
        wishes: numbers of an image's wishes.
        results: of any recorded graph, for their shapes.
    Attributes:
        host_pixels: (most, S, S, 3) uint8 and `host_wishes` (most, C + 9) float32: fill them, then `upload`.
        pixels, wishes: the same on the card.
    """

    def __init__(self, device: torch.device, most: int, size: int, wishes: int, results: FixedResults) -> None:
        def both(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return torch.empty(shape, dtype=dtype, pin_memory=True), torch.empty(shape, dtype=dtype, device=device)

        self._cells = results.masks.numel() // len(results.summary)
        self._host_pixels, self.pixels = both((most, size, size, 3), torch.uint8)
        self._host_wishes, self.wishes = both((most, wishes), torch.float32)
        self._host_summary, self._summary = both((most, results.summary.shape[1]), torch.float32)
        self._masks = torch.empty(most * self._cells, dtype=torch.float16, device=device)
        self.host_pixels: NDArray[np.uint8] = self._host_pixels.numpy()
        self.host_wishes: NDArray[np.float32] = self._host_wishes.numpy()
        self._copying = torch.cuda.Stream(device)
        self._uploaded, self._computed = torch.cuda.Event(), torch.cuda.Event()
        self._downloaded = torch.cuda.Event(blocking=True)  # a thread that waits sleeps: the core is somebody else's

    def upload(self, count: int) -> None:
        """Start copying the first `count` images to the card."""
        with torch.cuda.stream(self._copying):
            self.pixels[:count].copy_(self._host_pixels[:count], non_blocking=True)
            self.wishes[:count].copy_(self._host_wishes[:count], non_blocking=True)
            self._uploaded.record()

    def reserve(self) -> list[Tensor]:
        """Page-locked memory of every size that masks may need: it takes milliseconds to get, and PyTorch keeps it, in powers of two."""
        powers = range(self._masks.nbytes.bit_length() + 1)
        return [torch.empty(2**power, dtype=torch.uint8, pin_memory=True) for power in powers]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within: what the current stream does comes after the upload, and before `download`."""
        self._uploaded.wait()
        yield
        self._computed.record()

    def keep(self, results: FixedResults, count: int) -> None:
        """Take the results of `count` images over, on the current stream: the next replay of the graph writes over them."""
        self._summary[:count].copy_(results.summary[:count])
        most = count * self._cells
        self._masks[:most].copy_(results.masks[:most])

    def download(self, grids_hw: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Wait for the results of as many images as there are mask grids.

        Returns:
            Summaries, valid until the slot's next batch; and the masks of what was found, in page-locked memory of their own, which PyTorch
            takes back when nobody holds them any more.
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
    """Slots that are lent to callers in turn.

    Args:
        make: makes one; called when it is needed first.
    """

    def __init__(self, make: Callable[[], Slot]) -> None:
        self._make = make
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(None)

    @contextmanager
    def borrow(self) -> Iterator[Slot]:
        """Wait for a free slot and have it for a while."""
        slot = self._free.get()
        try:
            slot = slot or self._make()
            yield slot
        finally:
            self._free.put(slot)

    def fill(self) -> None:
        """Make all of them now; nobody else may use them meanwhile."""
        with ExitStack() as borrowed:
            reserved = [borrowed.enter_context(self.borrow()).reserve() for _ in range(SLOTS)]
            del reserved  # of all slots together: else each would be handed the memory of the one before

    def clear(self) -> None:
        """Give up the slots that nobody has."""
        for _ in range(self._free.qsize()):
            self._free.get()
            self._free.put(None)


class _Recorded(NamedTuple):
    replay: Callable[[], None]
    pixels: Tensor
    wishes: Tensor
    raw: RawOutputs
    results: FixedResults


class BatchGraphs:
    """Runs the same computation on batches of any size; each is padded up to the next size that was recorded.

    Args:
        compute: what is recorded.
        device: the card.
        sizes: batch sizes to record.
        size: side S of the network input, pixels.
        wishes: numbers of an image's wishes.
        tf32: whether float32 convolutions may be computed in TF32.
    """

    def __init__(self, compute: Compute, device: torch.device, sizes: Sequence[int], size: int, wishes: int, tf32: bool) -> None:
        self._compute, self._device, self._sizes = compute, device, sorted(sizes)
        self._input_size, self._wishes, self._tf32 = size, wishes, tf32
        self._stream = torch.cuda.Stream(device)
        self._recorded: dict[int, _Recorded] = {}
        self._pool: Any = None  # memory of the graphs, which replay one at a time

    def slot(self) -> Slot:
        """Room for the largest batch."""
        most = self._sizes[-1]
        return Slot(self._device, most, self._input_size, self._wishes, self._of_size(most).results)

    @torch.inference_mode()
    def run(self, slot: Slot, count: int) -> RawOutputs:
        """Start on the slot's first `count` images; one caller at a time.

        Returns:
            What the network will have said of them, for work on `stream()`; valid until the next call.
        """
        recorded = self._of_size(next(size for size in self._sizes if size >= count))
        with self.stream(), slot.computing():
            recorded.pixels[:count].copy_(slot.pixels[:count])
            recorded.wishes[:count].copy_(slot.wishes[:count])
            recorded.wishes[count:].fill_(1.0)  # no score exceeds a threshold of 1
            recorded.replay()
            slot.keep(recorded.results, count)
        return recorded.raw

    def stream(self) -> torch.cuda.StreamContext:
        """The stream that computes, as the current one."""
        return torch.cuda.stream(self._stream)

    def record_all(self) -> None:
        """Record every batch size now, the largest first, so that the others fit into its memory."""
        for size in reversed(self._sizes):
            self._of_size(size)

    def clear(self) -> None:
        """Drop the recorded graphs and their memory."""
        self._recorded.clear()
        self._pool = None
        torch.cuda.empty_cache()

    def _of_size(self, size: int) -> _Recorded:
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        return self._recorded[size]

    @torch.inference_mode()
    def _record(self, count: int) -> _Recorded:
        shape = count, self._input_size, self._input_size, 3
        pixels = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        wishes = torch.ones(count, self._wishes, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with cudnn_at_its_fastest(self._tf32):
            with self.stream():
                for _ in range(WARM_UP_RUNS):
                    self._compute(pixels, wishes)
            self._stream.synchronize()
            before = torch.cuda.current_stream(self._device)
            try:
                return self._captured(pixels, wishes)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # torch.cuda.graph leaves its own where the capture cannot end
                torch.cuda.synchronize(self._device)  # raises where more than the capture failed
                reason = str(error).partition("\n")[0]
                log.warning("no CUDA graph for batches of %d (%s): they run slower, operator by operator", count, reason)
                with self.stream():
                    return self._uncaptured(pixels, wishes)

    def _captured(self, pixels: Tensor, wishes: Tensor) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        with (
            without_collection(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            raw, results = self._compute(pixels, wishes)
        self._pool = graph.pool()
        return _Recorded(graph.replay, pixels, wishes, raw, results)

    def _uncaptured(self, pixels: Tensor, wishes: Tensor) -> _Recorded:
        """Replays by computing again, into the same results."""
        raw, results = self._compute(pixels, wishes)

        def replay() -> None:
            with cudnn_at_its_fastest(self._tf32):  # a graph would have kept what that chose
                again_raw, again = self._compute(pixels, wishes)
            for kept, fresh in zip((*raw, *results), (*again_raw, *again), strict=True):
                kept.copy_(fresh)

        return _Recorded(replay, pixels, wishes, raw, results)


@contextmanager
def without_collection() -> Iterator[None]:
    """Within: Python collects no garbage. Of a dropped engine it would destroy the graphs, which spoils one that is being recorded."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cudnn_at_its_fastest(tf32: bool) -> AbstractContextManager[None]:
    """Within: cuDNN tries its algorithms and takes the fastest; a graph keeps what was taken when it was recorded.

    Args:
        tf32: whether float32 convolutions may be computed in TF32.
    """
    return switched((torch.backends.cudnn, "benchmark", True), (torch.backends.cudnn, "allow_tf32", tf32))
