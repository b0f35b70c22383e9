"""Greedy non-maximum suppression of a batch of images: the sequential result without a loop over boxes.

Boxes are sorted by score and processed in blocks. First, boxes of a block that overlap a box kept in an earlier block are dropped. Then
"kept = not overlapped by a better kept box" is applied within the block until nothing changes. Each pass decides at least the best
undecided box, so the fixed point is the greedy result; a few passes suffice, because chains of overlapping boxes are short.
The best boxes are kept first, so the algorithm stops when every image has as many boxes as it may keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Boxes in a block, which are compared with one another: a 128x128 matrix per image."""


def greedy_nms(
    boxes_xyxy: Tensor, labels: Tensor, valid: Tensor, wanted: Tensor, iou_threshold: float, max_kept: Tensor
) -> Tensor:
    """Class-wise greedy NMS of B images.

    Args:
        boxes_xyxy: (B, M, 4) float, highest score first, any unit.
        labels: (B, M) int; boxes of different labels never suppress each other.
        valid: (B, M) bool; False marks padding.
        wanted: (B, M) bool; other boxes suppress as well, but are not returned and not counted.
        iou_threshold: a box is dropped if its IoU with a better kept box is larger.
        max_kept: (B,) int64, most boxes to return per image, the best ones.
    Returns:
        (B, M) bool, True for wanted boxes that were kept.
    Source: mmcv 2.1.0 `csrc/pytorch/cpu/nms.cpp` (strict comparison, no + 1) and `ops/nms.py::batched_nms`, whose coordinate
        offset by class is replaced by comparing labels, which loses no precision.
    """
    kept = torch.zeros_like(valid)
    for start in range(0, boxes_xyxy.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        block_boxes, block_labels, alive = boxes_xyxy[:, block], labels[:, block], valid[:, block]
        if start:
            before = _places_of(kept[:, :start])
            better = boxes_xyxy.gather(1, before[..., None].expand(-1, -1, 4))
            suppress = overlaps(better, labels.gather(1, before), block_boxes, block_labels, iou_threshold)
            alive = not_suppressed(alive, suppress, kept.gather(1, before))
        suppress = overlaps(block_boxes, block_labels, block_boxes, block_labels, iou_threshold).triu(1)
        kept[:, block] = _settle(suppress, alive)
        if bool(((kept & wanted).sum(1) >= max_kept).all()):
            break
    kept &= wanted
    return kept & (kept.cumsum(1) <= max_kept[:, None])


def _places_of(marks: Tensor) -> Tensor:
    """(B, k) int64: for each row the columns that are True, then others; k is the largest number of True cells in a row."""
    most = int(marks.sum(1).max())
    return marks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]


def _settle(suppress: Tensor, alive: Tensor) -> Tensor:
    """Fixed point of `kept = alive and not suppressed by a kept box`; suppress (B, K, K), the better box by row."""
    kept = alive
    while True:
        settled = not_suppressed(alive, suppress, kept)
        if torch.equal(settled, kept):
            return kept
        kept = settled


def not_suppressed(alive: Tensor, suppress: Tensor, kept: Tensor) -> Tensor:
    """(B, M) bool: the boxes of `alive` (B, M) that no box of `kept` (B, N) suppresses; suppress (B, N, M)."""
    return alive & ~(suppress & kept[..., None]).any(1)


def overlaps(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, iou_threshold: float) -> Tensor:
    """(B, N, M) bool: same label and IoU above the threshold; boxes (B, N, 4) and others (B, M, 4), labels (B, N) and (B, M)."""
    left, top, right, bottom = boxes[..., None].unbind(2)
    other_left, other_top, other_right, other_bottom = others[:, None].unbind(3)
    width = torch.minimum(right, other_right).sub_(torch.maximum(left, other_left)).clamp_(min=0)
    height = torch.minimum(bottom, other_bottom).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    shared = width.mul_(height)
    areas, other_areas = (right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top)
    union = (areas + other_areas).sub_(shared)
    return (shared.div_(union) > iou_threshold) & (labels[:, :, None] == other_labels[:, None, :])
