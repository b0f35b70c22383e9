"""A simulated accelerator for load tests: sleeps for a configured time and returns made-up instances.

images ─▶ pad_batch (the host's real work) ─▶ sleep until base_ms + per_image_ms * batch are over ─▶ ellipses

It causes the same load on the CPU stages and Ray as an accelerator of that speed, on a machine without one. It only runs with
`engine: simulated`, and `/info` reports it. Memory, copies to a device and its clock are not simulated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.images.letterbox import pad_batch
from pipeline.inference.base import BatchEngine
from pipeline.inference.engine import EngineInfo, EngineOptions
from pipeline.types import DetectOptions, Instances, LoadedImage

if TYPE_CHECKING:
    from pipeline.model.zoo import ModelHeader

_LOGIT_AT_CENTRE = 8.0
_COLUMNS = 4


class SimulatedEngine(BatchEngine):
    """Sleeps for the time in `options.simulated`; one pass at a time, as on one GPU.

    Args:
        model: name to report.
        header: classes and input size of the model that it imitates; its weights are not read.
        options: only `max_batch` and `simulated` are used.
    """

    def __init__(self, model: str, header: ModelHeader, options: EngineOptions) -> None:
        super().__init__(
            EngineInfo(
                model=model,
                classes=header.classes,
                input_size=header.input_size,
                engine="simulated",
                precision="none",
                device="simulated",
                threads=1,
                max_batch=options.max_batch,
            )
        )
        self._step = options.simulated
        self._device = threading.Lock()

    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        with self._device:
            began = time.perf_counter()
            pad_batch(images, self._info.input_size)
            time.sleep(max(0.0, began + self._step.step_s(len(images)) - time.perf_counter()))
        return [self._answer(image, wanted) for image, wanted in zip(images, options, strict=True)]

    def _answer(self, image: LoadedImage, wanted: DetectOptions) -> Instances:
        count = self._step.instances
        boxes, logits = ellipses(image.letterbox.mask_grid_hw, count)
        scores = np.linspace(0.95, 0.5, count, dtype=np.float32)
        labels = np.arange(count, dtype=np.int64) % len(self._info.classes)
        kept = scores > wanted.score_threshold
        if wanted.labels is not None:
            kept &= np.isin(labels, list(wanted.labels))
        index = np.flatnonzero(kept)[: wanted.max_detections]
        height, width = image.letterbox.original_hw
        scale = np.array([width, height, width, height], np.float32)
        return Instances(boxes[index] * scale, scores[index], labels[index], logits[index], image.letterbox)


@lru_cache(maxsize=256)
def ellipses(grid_hw: tuple[int, int], count: int) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Place `count` ellipses side by side in rows of four.

    Args:
        grid_hw: rows and columns of the mask grid.
    Returns:
        Boxes (count, 4) float32 x1 y1 x2 y2 as fractions of the image, and mask logits (count, *grid_hw) float16, inside is > 0.
    """
    rows = max(1, -(-count // _COLUMNS))
    row, column = np.divmod(np.arange(count), _COLUMNS)
    x, y = (column + 0.5) / _COLUMNS, (row + 0.5) / rows
    radius_x, radius_y = 0.45 / _COLUMNS, 0.45 / rows
    boxes = np.stack([x - radius_x, y - radius_y, x + radius_x, y + radius_y], axis=1).astype(np.float32)
    height, width = grid_hw
    across = ((np.arange(width) + 0.5) / width - x[:, None]) / radius_x
    down = ((np.arange(height) + 0.5) / height - y[:, None]) / radius_y
    logits = _LOGIT_AT_CENTRE * (1 - across[:, None, :] ** 2 - down[:, :, None] ** 2)
    return boxes, np.maximum(logits, -_LOGIT_AT_CENTRE).astype(np.float16)
