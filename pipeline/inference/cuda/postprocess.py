"""Post-processing with fixed shapes, so that it can be part of the network's CUDA graph.

    RawOutputs ─▶ best 512 scores ─▶ boxes ─▶ NMS in 10 passes ─▶ first 100 kept ─▶ mask parameters, masks ─▶ FixedResults
    + image options of an image                                          packed                              one copy to the host

`pipeline.inference.postprocess` has data-dependent shapes to avoid unnecessary work, and the host waits for the GPU at each of them. Here
all shapes are fixed; the unnecessary work costs a GPU little (docs/RESULTS.md). Two bounds make this possible: 512 candidates and 10
passes of NMS. The result says for each image whether it is exact within these bounds; if not, the caller runs `PostProcessor` on the same
outputs. The results are the same, except that equal scores may be in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.mask_head import packed_mask_logits
from pipeline.inference.postprocess import boxes_around, has_area, position_tables, thresholds_of
from pipeline.inference.selection import NMS_IOU
from pipeline.model.head_outputs import RawOutputs
from pipeline.model.kernel_branch import KernelBranch
from pipeline.types import DetectOptions, Instances, Letterbox

MAX_CANDIDATES = 512
"""Highest scores of an image that are used. Fewer than mmdet's 1000 per level, so that limit never applies."""
MAX_INSTANCES = 100
"""Most instances per image: mmdet's max_per_img."""
NMS_PASSES = 10
"""Passes of NMS. A box is decided one pass after the better boxes that overlap it; chains of overlaps are short (4 to 7 passes on photos
of crowds)."""
ROW = 6
"""Numbers per instance: x1 y1 x2 y2 in original pixels, score, label."""
LIMITS = 9
"""Numbers per image after the thresholds: most instances; then w h of: scaled image, factors to the original, original, mask grid."""

MaskHead = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`pipeline.inference.mask_head.packed_mask_logits`, or a faster equivalent."""
Suppress = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`suppress_in_passes`, or a faster equivalent."""


class FixedResults(NamedTuple):
    """Results for B images.

    Attributes:
        summary: (B, 2 + 100 * 6) float32: number of instances, 1 if the result is exact, and the rows of the instances.
        masks: (B * 100 * cells of the whole grid,) float16 mask logits as `pipeline.inference.mask_head.packed_mask_logits` packs them.
    """

    summary: Tensor
    masks: Tensor


def encode_options(
    letterboxes: Sequence[Letterbox], options: Sequence[DetectOptions], classes: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Encode letterbox and options of each image as numbers for the GPU.

    Args:
        letterboxes, options: of B images.
        classes: C.
        out: (B or more, C + 9) float32 to write into.
    Returns:
        (B, C + 9) float32: thresholds, then the values of `LIMITS`. At most 100 instances per image.
    """
    if out is None:
        out = np.empty((len(options), classes + LIMITS), np.float32)
    rows = out[: len(options)]
    rows[:, :classes] = thresholds_of(options, classes)
    for row, letterbox, wanted in zip(rows, letterboxes, options, strict=True):
        scaled_wh, original_wh, grid_wh = (
            hw[::-1] for hw in (letterbox.scaled_hw, letterbox.original_hw, letterbox.mask_grid_hw)
        )
        max_detections = min(wanted.max_detections, MAX_INSTANCES)
        row[classes:] = (max_detections, *scaled_wh, *letterbox.to_original_xy, *original_wh, *grid_wh)
    return rows


def suppress_in_passes(boxes: Tensor, labels: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Class-wise greedy NMS of K boxes of each of B images, without a loop over boxes.

    "kept = not overlapped by a better kept box" is applied to all boxes `NMS_PASSES` times. Each pass decides at least the best undecided
    box, so the fixed point is the greedy result.

    Args:
        boxes: (B, K, 4) float32, the best first.
        labels: (B, K) int64.
        alive: (B, K) bool, which rows are candidates.
    Returns:
        (B, K) bool, which are kept; and (B,) bool, whether the fixed point was reached, so that they are exact.
    """
    suppress = _overlaps(boxes, labels).triu_(1)
    kept = before = alive
    for _ in range(NMS_PASSES):
        before, kept = kept, alive & ~(suppress & kept[..., None]).any(1)
    return kept, (before == kept).all(1)


def _overlaps(boxes: Tensor, labels: Tensor) -> Tensor:
    """(B, K, K) bool: same label and IoU above `NMS_IOU`, of boxes (B, K, 4) and labels (B, K)."""
    left, top, right, bottom = boxes[..., None].unbind(2)
    width = torch.minimum(right, right.mT).sub_(torch.maximum(left, left.mT)).clamp_(min=0)
    height = torch.minimum(bottom, bottom.mT).sub_(torch.maximum(top, top.mT)).clamp_(min=0)
    shared = width.mul_(height)
    areas = (right - left) * (bottom - top)
    union = (areas + areas.mT).sub_(shared)
    return (shared.div_(union) > NMS_IOU) & (labels[:, :, None] == labels[:, None, :])


class FixedPostProcessor:
    """Everything after the network, for as many images as the outputs have rows.

    Args:
        input_hw: height and width of the network input, pixels, equal for all images.
        kernel_branch: what predicts mask parameters; it also knows the strides of the levels.
        device: where `RawOutputs` will be.
        suppress: non-maximum suppression.
        mask_head: what makes masks of their parameters.
    """

    def __init__(
        self,
        input_hw: tuple[int, int],
        kernel_branch: KernelBranch,
        device: torch.device | str = "cpu",
        suppress: Suppress = suppress_in_passes,
        mask_head: MaskHead = packed_mask_logits,
    ) -> None:
        self._kernel_branch, self._suppress, self._mask_head = kernel_branch.to(device), suppress, mask_head
        self._size = max(input_hw)
        self._points, self._strides, self._levels, self._around = position_tables(input_hw, kernel_branch, device)

    @torch.inference_mode()
    def __call__(self, outputs: RawOutputs, image_options: Tensor) -> FixedResults:
        """Find the instances of B images; nothing here waits for the device.

        Args:
            outputs: of the network, B rows.
            image_options: (B, C + 9) float32 as `encode_options` makes them, on the outputs' device.
        """
        classes = outputs.class_logits.shape[-1]
        thresholds, max_detections, scaled_wh, factors, original_wh, grid_wh = image_options.split(
            [classes, 1, 2, 2, 2, 2], dim=1
        )
        score, position, label = _best(outputs.class_logits, thresholds)
        boxes = self._boxes(outputs.distances, position)
        inside = torch.minimum(boxes, scaled_wh.repeat(1, 2)[:, None])
        kept, settled = self._suppress(boxes, label, (score > 0) & has_area(boxes))
        kept &= has_area(inside)
        rank = kept.cumsum(1)
        exact = settled & ((rank[:, -1:] >= max_detections) | (score[:, -1:] == 0)).squeeze(1)
        kept &= rank <= max_detections
        count = kept.sum(1)
        chosen = _places(kept, rank)
        found = torch.minimum(inside * factors.repeat(1, 2)[:, None], original_wh.repeat(1, 2)[:, None])
        rows = torch.cat([found, score[..., None], label[..., None].float()], dim=2).gather(1, chosen.expand(-1, -1, ROW))
        summary = torch.cat([count[:, None].float(), exact[:, None].float(), rows.flatten(1)], dim=1)
        return FixedResults(summary, self._masks(outputs, position.gather(1, chosen.squeeze(2)), count, grid_wh.long()))

    def _boxes(self, distances: Tensor, position: Tensor) -> Tensor:
        """(B, K, 4) network pixels."""
        reach = distances.gather(1, position[..., None].expand(-1, -1, 4)).float()
        return boxes_around(self._points[position], reach, self._size)

    def _masks(self, outputs: RawOutputs, position: Tensor, count: Tensor, grid_wh: Tensor) -> Tensor:
        """As `FixedResults.masks`, for positions (B, 100), of which each image has `count`."""
        batch, slots = position.shape
        around = self._around[position].flatten(0, 1)
        image = torch.arange(batch, device=position.device).repeat_interleave(slots)[:, None, None]
        patches = outputs.features[image, around.clamp(min=0)]
        flat = position.flatten()
        kernels = self._kernel_branch.of_any_level(patches, around >= 0, self._levels[flat])
        return self._mask_head(outputs.mask_features, kernels, self._points[flat], self._strides[flat], count, grid_wh)


def to_instances(summary: NDArray[np.float32], masks: NDArray[np.float16], letterboxes: Sequence[Letterbox]) -> list[Instances]:
    """Split what came to the host by image.

    Args:
        summary: (B, 602) float32 of `FixedResults`.
        masks: float16, of all instances as `FixedResults` says; they are not copied.
        letterboxes: of the images.
    """
    instances, first = [], 0
    for numbers, letterbox in zip(summary, letterboxes, strict=True):
        count = int(numbers[0])
        rows = numbers[2 : 2 + ROW * count].reshape(count, ROW)
        end = first + count * math.prod(letterbox.mask_grid_hw)
        own = masks[first:end].reshape(count, *letterbox.mask_grid_hw)
        boxes, scores, labels = rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5].astype(np.int64)
        instances.append(Instances(boxes, scores, labels, own, letterbox))
        first = end
    return instances


def _best(logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, position and label, (B, K) each, of the highest scores above their thresholds; then scores of 0.

    The best K scores lie at the K positions whose best class scores highest. NaN takes its position out.
    """
    _, count, classes = logits.shape
    scores = logits.float().sigmoid()
    scores = torch.where(scores > thresholds[:, None], scores, scores * 0)
    best, position = scores.amax(2).nan_to_num_(0).topk(min(MAX_CANDIDATES, count), sorted=False)
    rows = scores.gather(1, position[..., None].expand(-1, -1, classes))
    rows = torch.where(best[..., None] > 0, rows, 0).flatten(1)
    score, index = rows.topk(min(MAX_CANDIDATES, rows.shape[1]))
    return score, position.gather(1, index // classes), index % classes


def _places(kept: Tensor, rank: Tensor) -> Tensor:
    """(B, 100, 1) int64: columns of the kept ones, in order; then 0. `rank` counts them from 1."""
    slot = torch.where(kept, rank - 1, MAX_INSTANCES).clamp_(max=MAX_INSTANCES)
    columns = torch.arange(kept.shape[1], device=kept.device).expand_as(slot)
    places = torch.zeros(len(kept), MAX_INSTANCES + 1, dtype=torch.int64, device=kept.device)
    return places.scatter_(1, slot, columns)[:, :MAX_INSTANCES, None]
