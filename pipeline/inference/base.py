"""What all engines share: pad the batch, run the network, post-process, and name what went wrong.

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
from pipeline.images.letterbox import fit
from pipeline.inference.devices import owned_cores
from pipeline.inference.engine import EngineOptions, ModelInfo
from pipeline.types import DetectOptions, Instances, LoadedImage

if TYPE_CHECKING:
    from pipeline.model.spec import ModelSpec

_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "bad allocation", "bad alloc", "alloc failed")
_NO_ENGINE_SIGN = "unable to find an engine"
"""What PyTorch says when cuDNN found no algorithm, also where it found no memory for any."""
_FULL_SHARE = 0.05
"""A card with less of its memory free counts as full."""
_LOST_SIGN = "cuda error"
"""How torch's messages begin when a kernel or the card failed. The context is spoilt then: every later call fails as well."""


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

    def detect(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """Find the instances of each image, as `Engine.detect` says."""
        if len(images) != len(options):
            raise ShapeError(f"options: expected one for each of {len(images)} images, got {len(options)}")
        results: list[Instances] = []
        for first in range(0, len(images), self._info.max_batch):
            batch = slice(first, first + self._info.max_batch)
            with naming_failures(len(images[batch])):
                results += self._run(images[batch], options[batch])
        return results

    def warm_up(self) -> None:
        """Run a grey image, and on a GPU a full batch too: there it shows that the memory suffices. A CPU starts sooner without.

        On a GPU every position counts as an instance of the first class, so that the masks' kernels are loaded as well.
        """
        on_cpu = self._info.device == "cpu"
        options = DetectOptions() if on_cpu else DetectOptions(score_threshold=0.0, labels=frozenset({0}))
        for count in sorted({1, 1 if on_cpu else self._info.max_batch}):
            self.detect([grey_image(self._info.input_size)] * count, [options] * count)

    def close(self) -> None:
        """Nothing to free by default."""

    @abstractmethod
    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """One pass of the network over at most `max_batch` images."""


TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the precision's name."""


def torch_engine_info(spec: ModelSpec, options: EngineOptions, precision: str, device: str) -> ModelInfo:
    """What runs in an engine of PyTorch's on a device of this name."""
    return ModelInfo(
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
    """An image of nothing that fills the network's input."""
    return LoadedImage(np.full((size, size, 3), 114, np.uint8), fit((size, size), size))


@contextmanager
def naming_failures(batch: int) -> Iterator[None]:
    """Turn every library's way to run out of memory into EngineOutOfMemory, and to lose the card into EngineLost.

    The cause of the former is cut off: its frames hold the tensors of the failed pass, and the next try needs their memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).lower().replace("_", " ")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _tells_of_memory(message):
            traceback.clear_frames(error.__traceback__)
            raise EngineOutOfMemory(f"a batch of {batch} images does not fit into memory ({_first_line(error)})") from None
        if isinstance(error, torch.AcceleratorError) or _LOST_SIGN in message:
            raise EngineLost("the card failed, and this process cannot use it any more") from error
        raise


def _tells_of_memory(message: str) -> bool:
    return any(sign in message for sign in _OUT_OF_MEMORY_SIGNS) or (_NO_ENGINE_SIGN in message and _card_is_full())


def _card_is_full() -> bool:
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < _FULL_SHARE * total


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
