"""What all engines share: pad the batch, run the network, post-process, and name running out of memory.

images ─▶ pad_batch ─▶ uint8 (B, S, S, 3) ─▶ _infer ─▶ RawOutputs ─▶ PostProcessor ─▶ Instances
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from pipeline.engines import ModelInfo
from pipeline.errors import EngineOutOfMemory, ShapeError
from pipeline.letterbox import fit
from pipeline.types import DetectOptions, Instances, LoadedImage

_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "bad allocation", "bad_alloc")


class BatchEngine(ABC):
    """An engine but for `_run`, which subclasses give.

    Args:
        info: what runs here.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._info = info

    @property
    def info(self) -> ModelInfo:
        """What runs here."""
        return self._info

    def detect(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object] = lambda _: None
    ) -> list[Instances]:
        """Find the instances of each image, as `Engine.detect` says; `timings_ms` gains `detect`, the whole pass."""
        if len(images) != len(options):
            raise ShapeError(f"options: expected one for each of {len(images)} images, got {len(options)}")
        pairs, results = iter(zip(images, options, strict=True)), []
        while batch := list(islice(pairs, self._info.max_batch)):
            results += self._timed_run([image for image, _ in batch], [wanted for _, wanted in batch], has_room)
        return results

    def warm_up(self) -> None:
        """Run a grey image, and on a GPU a full batch too: there it shows that the memory suffices. A CPU starts sooner without."""
        on_cpu = self._info.engine == "openvino" or self._info.device == "cpu"
        for count in sorted({1, 1 if on_cpu else self._info.max_batch}):
            self.detect([grey_image(self._info.input_size)] * count, [DetectOptions()] * count)

    def close(self) -> None:
        """Nothing to free by default."""

    @abstractmethod
    def _run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object]
    ) -> list[Instances]:
        """One pass of the network over at most `max_batch` images. Calls `has_room` as `Engine.detect` says, or not at all."""

    def _timed_run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object]
    ) -> list[Instances]:
        started = time.perf_counter()
        with naming_out_of_memory(len(images)):
            found = self._run(images, options, has_room)
        spent = {"detect": (time.perf_counter() - started) * 1e3}
        return [replace(one, timings_ms={**image.timings_ms, **spent}) for image, one in zip(images, found, strict=True)]


def grey_image(size: int) -> LoadedImage:
    """An image of nothing that fills the network's input."""
    return LoadedImage(np.full((size, size, 3), 114, np.uint8), fit((size, size), size))


@contextmanager
def naming_out_of_memory(batch: int) -> Iterator[None]:
    """Turn every library's way to run out of memory into EngineOutOfMemory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise EngineOutOfMemory(f"a batch of {batch} images does not fit into memory") from error
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _OUT_OF_MEMORY_SIGNS):
            raise
        raise EngineOutOfMemory(f"a batch of {batch} images does not fit into memory") from error
