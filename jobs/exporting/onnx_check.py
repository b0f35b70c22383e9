"""Whether an exported model finds what this project's own engine finds, on generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from jobs.command_line import CommandFault
from jobs.exporting.onnx_model import INPUT
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import Checkpoint
from pipeline.types import DetectOptions, Instances, Letterbox, LoadedImage

BATCHES = (2, 1)
"""Sizes of the batches that are compared."""
LARGEST_BOX_PX, LARGEST_SCORE, LARGEST_MASK_SHARE = 0.1, 1e-3, 5e-3
MAX_ALONE = 0.03
"""Largest share of instances that only one side may have: NMS may differ for an overlap that equals its threshold to the last digit."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two models are apart on the same pictures.

    Attributes:
        instances: that both found, with the same label.
        alone: that the engine found and the exported model did not.
        box_px: largest difference of a corner, network pixels.
        score: largest difference of a score.
        mask_share: of the cells of a mask, those that are inside for one and outside for the other; of the mask that differs most.
    """

    instances: int
    alone: int
    box_px: float
    score: float
    mask_share: float

    @property
    def good(self) -> bool:
        """Whether rounding explains the differences."""
        within = self.box_px <= LARGEST_BOX_PX and self.score <= LARGEST_SCORE and self.mask_share <= LARGEST_MASK_SHARE
        return within and self.instances > 0 and self.alone <= MAX_ALONE * (self.instances + self.alone)

    def __str__(self) -> str:
        return (
            f"{self.instances} instances compared with this project's torch engine in fp32: boxes differ by {self.box_px:.2g} px at most, "
            f"scores by {self.score:.1g}, masks in {self.mask_share:.2%} of their cells; the exported model lacks {self.alone}."
        )


def check_onnx(path: Path, checkpoint: Checkpoint, input_size: int, detections: int) -> Agreement:
    """Compare the file, run by onnxruntime on the CPU, with our engine.

    Raises:
        CommandFault: they differ by more than rounding.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    engine = create_engine(checkpoint, EngineOptions(kind="torch", device="cpu", precision="fp32"))
    options = DetectOptions(score_threshold=0.0, max_detections=detections)
    letterbox = Letterbox((input_size, input_size), (input_size, input_size), input_size)
    ours, theirs = [], []
    for batch in BATCHES:
        pictures = [picture(input_size, seed=10 * batch + number) for number in range(batch)]
        ours += engine.detect([LoadedImage(pixels, letterbox) for pixels in pictures], [options] * batch)
        theirs.append(session.run(None, {INPUT: np.stack(pictures)}))
    agreement = agreement_of(ours, [np.concatenate(outputs) for outputs in zip(*theirs, strict=True)])
    if not agreement.good:
        raise CommandFault(f"the exported model differs from the engine, so nothing is written: {agreement}")
    return agreement


def picture(size: int, seed: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8: patches of all sizes in random colours."""
    random = np.random.default_rng(seed)
    pixels = np.full((size, size, 3), 128, np.uint8)
    for _ in range(60):
        (x, y), (width, height) = random.integers(0, size, 2), random.integers(4, size // 2, 2)
        pixels[y : y + height, x : x + width] = random.integers(0, 256, 3)
    return pixels


def agreement_of(found: Sequence[Instances], outputs: Sequence[NDArray[Any]]) -> Agreement:
    """Compare the engine's instances of B pictures as large as the input with dets, labels and masks of the exported model."""
    boxes, scores, cells, alone = [], [], [], 0
    for ours, dets, labels, masks in zip(found, *outputs, strict=True):
        apart = np.abs(ours.boxes[:, None] - dets[None, :, :4]).max(2)
        apart[ours.labels[:, None] != labels[None]] = np.inf
        for row, nearest in enumerate(apart.argmin(1)):
            if apart[row, nearest] > 1:
                alone += 1
                continue
            boxes.append(apart[row, nearest])
            scores.append(abs(ours.scores[row] - dets[nearest, 4]))
            cells.append(np.mean((ours.mask_logits[row] > 0) != (masks[nearest] > 0)))
    largest = [float(np.max(values, initial=0)) for values in (boxes, scores, cells)]
    return Agreement(len(boxes), alone, *largest)
