"""RTMDet-Ins with its post-processing as one ONNX model, compared with this project's own engine.

    images ─▶ RawNetwork ─▶ boxes, scores ─▶ NMS ─▶ the best D ─▶ mask parameters, masks ─▶ dets, labels, masks

Every shape but the batch is fixed: D rows per image, whatever is found. There is no score threshold: greedy NMS keeps the same boxes above
a threshold whether lower scores take part or not, so the threshold is the reader's to choose.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import opset18 as op
from torch import Tensor, nn

from jobs.command_line import CommandFault
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.inference.mask_head import masks_of_batch
from pipeline.inference.postprocess import boxes_around, has_area, position_tables
from pipeline.inference.selection import CANDIDATES_PER_LEVEL, NMS_IOU
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.compiled_ops import greedy_nms
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, Instances, Letterbox, LoadedImage

OPSET = 18
INPUT, OUTPUTS = "images", ("dets", "labels", "masks")
EVERY_BOX = 2**31 - 1
"""Boxes of a class that NonMaxSuppression may keep."""
NO_LABEL = -1
"""Label of rows beyond the instances that were found; their score is 0."""
BATCHES = (2, 1)
"""Sizes of the batches that are compared."""
LARGEST_BOX_PX, LARGEST_SCORE, LARGEST_MASK_SHARE = 0.1, 1e-3, 5e-3
MAX_ALONE = 0.03
"""Largest share of instances that only one side may have: NMS may differ for an overlap that equals its threshold to the last digit."""


@torch.library.custom_op("rtmdet_export::nms_scores", mutates_args=())
def nms_scores(boxes: Tensor, scores: Tensor) -> Tensor:
    """Scores (B, C, P) of boxes (B, P, 4), 0 if a better box of the same class suppresses them."""
    kept = torch.zeros_like(scores)
    for own, given, out in zip(boxes, scores, kept, strict=True):
        for label, of_label in enumerate(given):
            position = of_label.nonzero()[:, 0]
            best = position[greedy_nms(own[position], of_label[position], NMS_IOU)]
            out[label, best] = of_label[best]
    return kept


@nms_scores.register_fake
def _(boxes: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores)


def nms_scores_in_onnx(boxes: Any, scores: Any) -> Any:
    """As `nms_scores`, by ONNX's operators."""
    most, threshold, least = (
        op.Constant(value_ints=[EVERY_BOX]),
        op.Constant(value_floats=[NMS_IOU]),
        op.Constant(value_floats=[0.0]),
    )
    kept = op.NonMaxSuppression(boxes, scores, most, threshold, least)  # type: ignore[arg-type]  # constants have no element type here
    return op.ScatterND(op.Sub(scores, scores), kept, op.GatherND(scores, kept))


class EndToEnd(nn.Module):
    """Network and post-processing, with shapes that do not depend on the data.

    Args:
        checkpoint: the model.
        input_size: side S of the square input, pixels.
        detections: D, rows per image.
    """

    points: Tensor
    strides: Tensor
    levels: Tensor
    around: Tensor

    def __init__(self, checkpoint: Checkpoint, input_size: int, detections: int) -> None:
        super().__init__()
        self.network = RawNetwork(checkpoint.network(), input_size)
        self._size, self._detections = input_size, detections
        tables = position_tables((input_size, input_size), self.network.kernel_branch, "cpu")
        for name, table in zip(tables._fields, tables, strict=True):
            self.register_buffer(name, table)
        self._level_sizes = tables.levels.bincount().tolist()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, S, 3) uint8 BGR to boxes and scores (B, D, 5), labels (B, D) int64, mask logits (B, D, S / 8, S / 8)."""
        outputs = self.network(images)
        boxes = boxes_around(self.points, outputs.distances, self._size)
        scores = outputs.class_logits.sigmoid() * has_area(boxes)[..., None]
        scores = nms_scores(boxes, self._best_per_level(scores).transpose(1, 2).contiguous())
        best, index = scores.flatten(1).topk(self._detections)
        positions = scores.shape[2]
        label, position = index // positions, index % positions
        found = boxes.gather(1, position[..., None].expand(-1, -1, 4))
        masks = self._masks(outputs.features, outputs.mask_features, position)
        return torch.cat([found, best[..., None]], 2), torch.where(best > 0, label, NO_LABEL), masks

    def _best_per_level(self, scores: Tensor) -> Tensor:
        """(B, P, C) scores, 0 beyond the best 1000 of each level."""
        kept = []
        for level in scores.split(self._level_sizes, 1):
            flat = level.flatten(1)
            if flat.shape[1] > CANDIDATES_PER_LEVEL:
                least = flat.topk(CANDIDATES_PER_LEVEL)[0][:, -1, None, None]
                level = level * (level >= least)
            kept.append(level)
        return torch.cat(kept, 1)

    def _masks(self, features: Tensor, mask_features: Tensor, position: Tensor) -> Tensor:
        around = self.around[position]
        rows = around.clamp(min=0).flatten(1)[..., None].expand(-1, -1, features.shape[2])
        patches = features.gather(1, rows).view(-1, *around.shape[2:], features.shape[2])
        places = position.flatten()
        inside = (around >= 0).flatten(0, 1)
        parameters = self.network.kernel_branch.of_any_level(patches, inside, self.levels[places])
        return masks_of_batch(mask_features, parameters, self.points[places], self.strides[places])


def write_onnx(checkpoint: Checkpoint, path: Path, input_size: int, detections: int, metadata: dict[str, str]) -> None:
    """Write the model as one file; what it takes and gives is in its metadata, too.

    Args:
        input_size: side of the square input, pixels.
        detections: rows per image.
        metadata: to write into the file.
    """
    model = EndToEnd(checkpoint, input_size, detections).eval()
    pixels = torch.zeros(2, input_size, input_size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    translations: dict[Any, Any] = {torch.ops.rtmdet_export.nms_scores.default: nms_scores_in_onnx}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # mmdet's autocast, and what torch and onnxscript say of each other
        program = torch.onnx.export(
            model,
            (pixels,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: batch}},
            custom_translation_table=translations,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


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
            f"scores by {self.score:.1g}, masks in {self.mask_share:.2%} of their cells; missing in the exported model: {self.alone}."
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
