"""A pass of an engine over a batch, for `benchmarks.network` and `benchmarks.bench_cuda`; needs no engine's libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.engine import Engine
from pipeline.types import DetectOptions, Instances


def detection(engine: Engine, photo: bytes, batch: int, threshold: float = 0.3) -> Callable[[], Sequence[Instances]]:
    """A pass of the engine over so many copies of one photo, which is loaded here, once."""
    images = [load_image(photo, DecodeLimits(), engine.info.input_size)] * batch
    return partial(engine.detect, images, [DetectOptions(threshold)] * batch)
