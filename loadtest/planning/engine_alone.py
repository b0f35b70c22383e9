"""Measures the engine alone on the same cores: the upper bound for a service."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.engine import Engine
from pipeline.types import DetectOptions


def measure_engine(engine: Engine, photos: Sequence[bytes], batch: int, seconds: float) -> float:
    """Images/s of the engine alone, from loaded images to instances."""
    loaded = [load_image(photo, DecodeLimits(), engine.info.input_size) for photo in photos]
    batches = [[loaded[(start + k) % len(loaded)] for k in range(batch)] for start in range(len(loaded))]
    options = [DetectOptions()] * batch
    count, began = 0, time.perf_counter()
    for images in itertools.cycle(batches):
        engine.detect(images, options)
        count += batch
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)
