"""Pieces of the torch engine that keep a CUDA card busy; on a CPU each becomes the plain thing.

- `UploadSlots`: two buffers, so that one batch is copied to the card while the other is computed.
- `BatchRunner`: one recorded CUDA graph for each batch size in `buckets`; a batch is padded up to the next one. Replaying a
  graph is one launch instead of some hundred, which is what bounds small batches on a fast card.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.head_outputs import RawOutputs
from pipeline.network import RawNetwork

WARM_UP_RUNS = 3
"""Runs before recording: cuDNN picks its algorithms and libraries allocate their work space (PyTorch's CUDA graph notes)."""


def default_buckets(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4 ... and max_batch itself."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


class Slot:
    """Room for one batch on the host and on the device.

    Args:
        device: where batches are computed.
        shape: (largest batch, S, S, 3).
        stream: CUDA stream for copies; None on a CPU.
    """

    def __init__(self, device: torch.device, shape: tuple[int, ...], stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=stream is not None)
        self.host: NDArray[np.uint8] = self._pixels.numpy()
        self.device_pixels = self._pixels if stream is None else torch.empty(shape, dtype=torch.uint8, device=device)

    def upload(self, count: int) -> None:
        """Start copying the first `count` images; `consumed` waits for it."""
        if self._stream is None:
            return
        with torch.cuda.stream(self._stream):
            self.device_pixels[:count].copy_(self._pixels[:count], non_blocking=True)

    @contextmanager
    def consumed(self) -> Iterator[None]:
        """Within: what the current stream does comes after the copy. Left only when the device is done with the slot."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device_pixels.device)
        current.wait_stream(self._stream)
        try:
            yield
        finally:
            current.synchronize()


class UploadSlots:
    """Two slots on a CUDA device, one on a CPU, lent to callers in turn.

    Args:
        device: where batches are computed.
        shape: (largest batch, S, S, 3).
    """

    def __init__(self, device: torch.device, shape: tuple[int, ...]) -> None:
        on_cuda = device.type == "cuda"
        stream = torch.cuda.Stream(device) if on_cuda else None
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for _ in range(2 if on_cuda else 1):
            self._free.put(Slot(device, shape, stream))

    def clear(self) -> None:
        """Give up the slots that nobody has."""
        while not self._free.empty():
            self._free.get()

    @contextmanager
    def borrow(self) -> Iterator[Slot]:
        """Wait for a free slot and have it for a while."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)


class BatchRunner:
    """Runs the network on the first images of a buffer.

    Args:
        network: on `device`, in its precision.
        device: CPU runs eagerly with the exact batch; CUDA replays graphs.
        buckets: batch sizes to record.
    """

    def __init__(self, network: RawNetwork, device: torch.device, buckets: Sequence[int]) -> None:
        self._network = network
        self._device = device
        self._buckets = sorted(buckets)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, RawOutputs]] = {}
        self._recording = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, count: int) -> RawOutputs:
        """Outputs of `pixels[:count]`, (count or more) rows; valid until the next call."""
        if self._device.type != "cuda":
            return self._network(pixels[:count])
        bucket = next(size for size in self._buckets if size >= count)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._record(bucket, pixels.shape[1])
        graph, graph_pixels, outputs = self._graphs[bucket]
        graph_pixels[:count].copy_(pixels[:count])
        graph.replay()
        return outputs

    @torch.inference_mode()
    def record_all(self, size: int) -> None:
        """Record every bucket now, the largest first, so that the others fit into its memory."""
        if self._device.type == "cuda":
            for bucket in reversed(self._buckets):
                self._graphs[bucket] = self._record(bucket, size)

    def clear(self) -> None:
        """Drop the recorded graphs and their memory."""
        self._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _record(self, bucket: int, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, RawOutputs]:
        pixels = torch.zeros(bucket, size, size, 3, dtype=torch.uint8, device=self._device)
        assert self._recording is not None
        self._recording.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._recording):
            for _ in range(WARM_UP_RUNS):
                self._network(pixels)
        torch.cuda.current_stream(self._device).wait_stream(self._recording)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=self._recording, capture_error_mode="thread_local"):
            outputs = self._network(pixels)
        return graph, pixels, outputs
