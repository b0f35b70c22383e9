"""Base class of the engines: splits images into batches, warms up, and maps errors of the libraries.

images ─▶ pad_batch ─▶ uint8 (B, H, W, 3) ─▶ network ─▶ RawOutputs ─▶ PostProcessor ─▶ Instances
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import EngineLost, EngineOutOfMemory, ShapeError
from pipeline.images.letterbox import make_letterbox
from pipeline.inference.devices import owned_cores
from pipeline.inference.engine import EngineInfo, EngineOptions
from pipeline.types import DetectOptions, Instances, LoadedImage

if TYPE_CHECKING:
    from pipeline.model.spec import ModelSpec

_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "bad allocation", "bad alloc", "alloc failed")
_NO_ENGINE_SIGN = "unable to find an engine"
"""PyTorch's message if cuDNN found no algorithm, also if the reason is a lack of memory."""
_FULL_SHARE = 0.05
"""A GPU with a smaller share of its memory free counts as full."""
_LOST_SIGN = "cuda error"
"""Beginning of torch's messages when a kernel or the GPU failed. The CUDA context cannot be used any more: all later calls fail too."""


class BatchEngine(ABC):
    """Base class of engines; subclasses implement `_run`.

    Args:
        info: description of the engine.
    """

    def __init__(self, info: EngineInfo) -> None:
        self._info = info

    @property
    def info(self) -> EngineInfo:
        """Model, engine, precision and device."""
        return self._info

    def detect(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """See `Engine.detect`."""
        if len(images) != len(options):
            raise ShapeError(f"options: expected one for each of {len(images)} images, got {len(options)}")
        results: list[Instances] = []
        for first in range(0, len(images), self._info.max_batch):
            batch = slice(first, first + self._info.max_batch)
            with mapped_errors(len(images[batch])):
                results += self._run(images[batch], options[batch])
        return results

    def detect_leaving_room(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """See `Engine.detect_leaving_room`; here the same as `detect`."""
        return self.detect(images, options)

    def warm_up(self) -> None:
        """Run one grey image; on a GPU also a full batch, to check that its memory suffices.

        On a GPU every position counts as an instance of the first class, so that the kernels for masks are loaded too.
        """
        on_cpu = self._info.device == "cpu"
        options = DetectOptions() if on_cpu else DetectOptions(score_threshold=0.0, labels=frozenset({0}))
        for count in sorted({1, 1 if on_cpu else self._info.max_batch}):
            self.detect([grey_image(self._info.input_size)] * count, [options] * count)

    def close(self) -> None:
        """Free resources; does nothing by default."""

    @abstractmethod
    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """Run the network on at most `max_batch` images."""


TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtypes by the names of precisions."""


def torch_engine_info(spec: ModelSpec, options: EngineOptions, precision: str, device: str) -> EngineInfo:
    """The EngineInfo of an engine that runs PyTorch on the device with this name."""
    return EngineInfo(
        model=spec.name,
        classes=spec.classes,
        input_size=spec.input_size,
        engine="torch",
        precision=precision,
        device=device,
        threads=options.threads or owned_cores(),
        max_batch=options.max_batch,
    )


def grey_image(size: int) -> LoadedImage:
    """A grey image that fills the network's input."""
    return LoadedImage(np.full((size, size, 3), 114, np.uint8), make_letterbox((size, size), size))


@contextmanager
def mapped_errors(batch: int) -> Iterator[None]:
    """Within: map the libraries' out-of-memory errors to EngineOutOfMemory, and device failures to EngineLost.

    EngineOutOfMemory is raised without its cause, whose frames would keep the tensors of the failed pass in memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).lower().replace("_", " ")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _tells_of_memory(message):
            traceback.clear_frames(error.__traceback__)
            raise EngineOutOfMemory(f"a batch of {batch} images does not fit into memory ({_first_line(error)})") from None
        if isinstance(error, torch.AcceleratorError) or _LOST_SIGN in message:
            raise EngineLost("the GPU failed, and this process cannot use it any more") from error
        raise


def _tells_of_memory(message: str) -> bool:
    return any(sign in message for sign in _OUT_OF_MEMORY_SIGNS) or (_NO_ENGINE_SIGN in message and _gpu_is_full())


def _gpu_is_full() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # the GPU is lost; the next call tells
        return False
    return free < _FULL_SHARE * total


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
