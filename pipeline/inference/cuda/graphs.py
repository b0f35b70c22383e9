"""CUDA graphs of the CUDA engine: one for each batch size.

    Slot ─▶ BatchGraphs: replay the graph of its batch size ─▶ Slot

A graph contains network and post-processing. Replaying it is one launch instead of hundreds, without waiting in between. If recording
fails, or a graph's results differ from those of the same operators without it, the operators are launched each time.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.cuda.postprocess import MAX_INSTANCES, ROW, FixedResults
from pipeline.inference.cuda.slots import Slot
from pipeline.inference.devices import switched
from pipeline.model.head_outputs import RawOutputs

logger = logging.getLogger(__name__)
WARM_UP_RUNS = 3
"""Runs before recording: cuDNN picks its algorithms and libraries allocate their work space (PyTorch's CUDA graph notes)."""
REPLAY_TOLERANCE = 0.1
"""Mean difference over mean of what a replay computes. The same kernels run, so it is nearly 0; between two noise images, 0.45 and more
(largest of the outcomes; three models on a CPU)."""

Compute = Callable[[Tensor, Tensor], tuple[RawOutputs, FixedResults]]
"""Takes pixels (B, S, S, 3) uint8 and image options (B, C + 9) float32; returns the network's outputs and the results, without waiting for
the GPU."""


def default_buckets(max_batch: int) -> tuple[int, ...]:
    """The batch sizes 1, 2, 4 ... and max_batch."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


class _Recorded(NamedTuple):
    replay: Callable[[], None]
    pool: Any  # of the graph, if it is one
    pixels: Tensor
    image_options: Tensor
    raw: RawOutputs
    results: FixedResults


class BatchGraphs:
    """Runs a computation on batches of any size; each is padded to the next recorded size.

    Args:
        compute: the computation to record.
        device: the GPU.
        sizes: batch sizes to record.
        size: side S of the network input, pixels.
        trial: (C + 9,) image options that find instances in any image, to try a graph with.
        tf32: whether float32 convolutions may be computed in TF32.
    """

    def __init__(
        self,
        compute: Compute,
        device: torch.device,
        sizes: Sequence[int],
        size: int,
        trial: NDArray[np.float32],
        tf32: bool,
    ) -> None:
        self._compute, self._device, self._sizes = compute, device, sorted(sizes)
        self._input_size, self._trial, self._tf32 = size, torch.from_numpy(trial).to(device), tf32
        self._stream = torch.cuda.Stream(device)
        self._recorded: dict[int, _Recorded] = {}
        self._pool: Any = None  # memory of the graphs, which replay one at a time

    def slot(self) -> Slot:
        """A slot for the largest batch."""
        max_batch = self._sizes[-1]
        return Slot(self._device, max_batch, self._input_size, len(self._trial), self._of_size(max_batch).results)

    @torch.inference_mode()
    def run(self, slot: Slot, count: int) -> RawOutputs:
        """Start on the slot's first `count` images; one caller at a time.

        Returns:
            The network's outputs, for further work on `stream()`; valid until the next call.
        """
        recorded = self._of_size(next(size for size in self._sizes if size >= count))
        with self.stream(), slot.computing():
            recorded.pixels[:count].copy_(slot.pixels[:count])
            recorded.image_options[:count].copy_(slot.image_options[:count])
            recorded.image_options[count:].fill_(1.0)  # no score exceeds a threshold of 1
            recorded.replay()
            slot.keep(recorded.results, count)
        return recorded.raw

    def stream(self) -> torch.cuda.StreamContext:
        """Within: the computing stream is the current one."""
        return torch.cuda.stream(self._stream)

    def record_all(self) -> bool:
        """Record all batch sizes, the largest first, so that the others can reuse its memory; whether each has a graph."""
        recorded = [self._of_size(size) for size in reversed(self._sizes)]
        return all(one.pool is not None for one in recorded)

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
        pixels = torch.empty(shape, dtype=torch.uint8, device=self._device)
        image_options = torch.empty(count, len(self._trial), device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with cudnn_at_its_fastest(self._tf32):
            with self.stream():
                expected = self._tried(pixels, image_options, lambda: self._compute(pixels, image_options))
                for _ in range(WARM_UP_RUNS - 1):
                    self._compute(pixels, image_options)
            self._stream.synchronize()
            before = torch.cuda.current_stream(self._device)
            try:
                recorded = self._captured(pixels, image_options)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # torch.cuda.graph does not restore it if the capture fails
                torch.cuda.synchronize(self._device)  # raises if more than the capture failed
                reason = str(error).partition("\n")[0]
            else:
                difference = self._difference(recorded, expected)
                if difference <= REPLAY_TOLERANCE:
                    self._pool = recorded.pool
                    return recorded
                reason = f"its results are off by {difference:.3g} of themselves"
                del recorded
            logger.warning("no CUDA graph for batches of %d (%s): they run slower, without a graph", count, reason)
            with self.stream():
                return self._uncaptured(pixels, image_options)

    def _tried(
        self, pixels: Tensor, image_options: Tensor, compute: Callable[[], tuple[RawOutputs, FixedResults]]
    ) -> list[Tensor]:
        """The outcomes for noise, the same each time; afterwards the images are black, and nothing is found in them."""
        source = torch.Generator(self._device).manual_seed(len(pixels))
        pixels.random_(0, 256, generator=source)
        image_options.copy_(self._trial)
        outcomes = _outcomes(*compute())
        pixels.zero_()
        image_options.fill_(1.0)
        return outcomes

    def _difference(self, recorded: _Recorded, expected: Sequence[Tensor]) -> float:
        """How far a replay is from what the operators gave for the same images: the largest mean difference over mean."""

        def replay() -> tuple[RawOutputs, FixedResults]:
            recorded.replay()
            return recorded.raw, recorded.results

        with self.stream():
            found = self._tried(recorded.pixels, recorded.image_options, replay)
            return max(map(_mean_difference, found, expected))

    def _captured(self, pixels: Tensor, image_options: Tensor) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        with (
            without_collection(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            raw, results = self._compute(pixels, image_options)
        return _Recorded(graph.replay, graph.pool(), pixels, image_options, raw, results)

    def _uncaptured(self, pixels: Tensor, image_options: Tensor) -> _Recorded:
        """A replay that computes again, into the same results."""
        raw, results = self._compute(pixels, image_options)

        def replay() -> None:
            with cudnn_at_its_fastest(self._tf32):  # a graph would have recorded the choice
                again_raw, again = self._compute(pixels, image_options)
            for kept, fresh in zip((*raw, *results), (*again_raw, *again), strict=True):
                kept.copy_(fresh)

        return _Recorded(replay, None, pixels, image_options, raw, results)


def _outcomes(raw: RawOutputs, results: FixedResults) -> list[Tensor]:
    """What to compare of a batch: of the first and the last image the network's outputs, the number of instances and their scores; and the
    mean size of the first image's mask logits. Which instances are found is left out: rounding may decide it in noise."""
    ends = results.summary[[0, -1]]
    count, cells = int(ends[0, 0]), results.masks.numel() // results.summary.shape[0] // MAX_INSTANCES
    scores = ends[:, 2:].unflatten(1, (-1, ROW))[..., ROW - 2]
    masks = results.masks[: count * cells].float().abs().sum() / max(1, count * cells)
    return [*(part[[0, -1]] for part in raw), ends[:, :1], scores, masks]


def _mean_difference(found: Tensor, expected: Tensor) -> float:
    """Mean difference over mean; what is not finite counts as 0."""
    one, other = (part.float().nan_to_num(0.0, 0.0, 0.0) for part in (found, expected))
    return float((one - other).abs().mean() / other.abs().mean().clamp(min=1e-6))


@contextmanager
def without_collection() -> Iterator[None]:
    """Within: no garbage collection. It could destroy the graphs of a dropped engine, which would break a recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def cudnn_at_its_fastest(tf32: bool) -> AbstractContextManager[None]:
    """Within: cuDNN benchmarks its algorithms and uses the fastest; a graph keeps the one that it was recorded with.

    Args:
        tf32: whether float32 convolutions may be computed in TF32.
    """
    return switched((torch.backends.cudnn, "benchmark", True), (torch.backends.cudnn, "allow_tf32", tf32))
