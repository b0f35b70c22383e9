"""Selects the instances of an image: scores above the threshold ─▶ best 1000 of each level ─▶ boxes ─▶ NMS.

In compiled loops, because an image has a few dozen candidates: as some hundred PyTorch operations this took longer than the rest of the
post-processing, most of it overhead of the calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

CANDIDATES_PER_LEVEL = 1000
"""nms_pre of RTMDet's test config."""
NMS_IOU = 0.6
"""nms.iou_threshold of RTMDet's test config."""

_ONE, _IOU = np.float32(1), np.float32(NMS_IOU)


class Positions(NamedTuple):
    """Look-up tables for all P positions of a network input.

    Attributes:
        points: (P, 2) float32 x y, network pixels.
        levels: (P,) int64.
    """

    points: NDArray[np.float32]
    levels: NDArray[np.int64]


class Selected(NamedTuple):
    """The instances of one image, highest score first.

    Attributes:
        positions: (n,) int64, index of the network's position.
        labels: (n,) int64.
        scores: (n,) float32.
        boxes: (n, 4) float32 x1 y1 x2 y2, network pixels, clipped to the image.
    """

    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]


@compiled
def select(
    logits: NDArray[np.float32],
    distances: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    grid: Positions,
    size: int,
    scaled_wh: tuple[int, int],
    max_detections: int,
) -> Selected:
    """Select the instances of one image.

    Args:
        logits: (P, C) float32, of all positions and classes. NaN takes its position out.
        distances: (P, 4) float32, from the position's point to the box's left, top, right and bottom, network pixels.
        thresholds: (C,) float32, only higher scores are kept; 1 keeps none.
        grid: the positions.
        size: side of the network's square input, pixels.
        scaled_wh: width and height of the image in it, network pixels.
        max_detections: most instances.
    """
    positions, labels, scores = _candidates(logits, thresholds)
    order = _best_per_level(scores, grid.levels[positions])
    positions, labels, scores = positions[order], labels[order], scores[order]
    boxes = _boxes(distances, grid.points, positions, np.float32(size))
    inside = np.empty_like(boxes)
    for row in range(len(boxes)):
        for side in range(4):
            inside[row, side] = min(boxes[row, side], np.float32(scaled_wh[side % 2]))
    kept = _not_suppressed(boxes, inside, labels, max_detections)
    return Selected(positions[kept], labels[kept], scores[kept], inside[kept])


@compiled
def _candidates(
    logits: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Position, label and score of each score above its threshold; in order of position and label."""
    lowest = np.log(thresholds / (_ONE - thresholds)) - np.float32(1e-3)  # a first, cheap comparison, of logits
    positions, labels, scores = [0 for _ in range(0)], [0 for _ in range(0)], [_ONE for _ in range(0)]
    for position in range(len(logits)):
        if _may_hold_one(logits[position], lowest):
            for label in range(len(thresholds)):
                if not logits[position, label] > lowest[label]:
                    continue
                score = _ONE / (_ONE + np.exp(-logits[position, label]))
                if score > thresholds[label]:
                    positions.append(position)
                    labels.append(label)
                    scores.append(score)
    return np.array(positions, np.int64), np.array(labels, np.int64), np.array(scores, np.float32)


@compiled
def _may_hold_one(logits: NDArray[np.float32], lowest: NDArray[np.float32]) -> bool:
    """Whether a position's logits exceed `lowest` anywhere, and none is NaN."""
    passes = broken = False
    for label in range(len(logits)):
        passes |= logits[label] > lowest[label]
        broken |= np.isnan(logits[label])
    return passes and not broken


@compiled
def _best_per_level(scores: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the best candidates of each level, highest score first, ties in their order."""
    if len(scores) <= CANDIDATES_PER_LEVEL:
        return np.argsort(-scores, kind="mergesort")
    lowest = np.zeros(levels[-1] + 1, np.float32)
    for level in range(len(lowest)):
        lowest[level] = _reached_by_enough(scores[levels == level])
    eligible = np.flatnonzero(scores >= lowest[levels])  # more than fit
    order = eligible[np.argsort(-scores[eligible], kind="mergesort")]
    count = np.zeros(len(lowest), np.int64)
    kept = np.zeros(len(order), np.bool_)
    for index, candidate in enumerate(order):
        count[levels[candidate]] += 1
        kept[index] = count[levels[candidate]] <= CANDIDATES_PER_LEVEL
    return order[kept]


@compiled
def _reached_by_enough(scores: NDArray[np.float32]) -> np.float32:
    """A score that CANDIDATES_PER_LEVEL of these scores reach, or few more; 0 if there are not more. By bisection.

    `np.partition` takes 5 s to compile.
    """
    if len(scores) <= CANDIDATES_PER_LEVEL:
        return np.float32(0)
    low, high = np.float32(0), _ONE
    while True:
        middle = (low + high) / np.float32(2)
        if not low < middle < high:  # neighbours in float32
            return low
        count = 0
        for score in scores:
            count += score >= middle
        if count < CANDIDATES_PER_LEVEL:
            high = middle
        else:
            low = middle


@compiled
def _boxes(
    distances: NDArray[np.float32], points: NDArray[np.float32], positions: NDArray[np.int64], size: np.float32
) -> NDArray[np.float32]:
    """(n, 4), clamped to the network's square, as mmdet does before its NMS."""
    boxes = np.empty((len(positions), 4), np.float32)
    for row, position in enumerate(positions):
        for axis in range(2):
            point = points[position, axis]
            boxes[row, axis] = np.minimum(np.maximum(point - distances[position, axis], np.float32(0)), size)
            boxes[row, axis + 2] = np.minimum(np.maximum(point + distances[position, axis + 2], np.float32(0)), size)
    return boxes


@compiled
def _not_suppressed(
    boxes: NDArray[np.float32], inside: NDArray[np.float32], labels: NDArray[np.int64], max_detections: int
) -> NDArray[np.int64]:
    """Class-wise greedy NMS: indices of at most `max_detections` boxes.

    Boxes without area take no part. A box that lies wholly in the padding (`inside` has no area) suppresses others, but is not returned.
    Source: mmcv 2.1.0 `csrc/pytorch/cpu/nms.cpp` (strict comparison, no + 1).
    """
    better, returned = [0 for _ in range(0)], [0 for _ in range(0)]
    for box in range(len(boxes)):
        if len(returned) == max_detections:
            break
        if not _has_area(boxes[box]):
            continue
        for other in better:
            if labels[other] == labels[box] and _iou(boxes[other], boxes[box]) > _IOU:
                break
        else:
            better.append(box)
            if _has_area(inside[box]):
                returned.append(box)
    return np.array(returned, np.int64)


@compiled
def _has_area(box: NDArray[np.float32]) -> bool:
    return bool(box[2] > box[0] and box[3] > box[1])


@compiled
def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> np.float32:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), np.float32(0))
    height = max(min(one[3], other[3]) - max(one[1], other[1]), np.float32(0))
    shared = width * height
    area, other_area = (one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1])
    return shared / (area + other_area - shared)  # type: ignore[no-any-return]
