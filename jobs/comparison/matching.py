"""Matches the objects of two answers for one photo by the IoU of their masks, and sums up over all photos.

Objects match if they have the same label and at least the threshold as mask IoU; highest IoU first, each object once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from jobs.annotations.outlines import outline_to_rle
from pipeline.types import SegmentedObject


@dataclass(frozen=True, slots=True)
class Pair:
    """Two matched objects.

    Args:
        first, second: their indices in the two answers.
        mask_iou, box_iou: 0..1.
        score_shift: score of the second minus score of the first.
    """

    first: int
    second: int
    mask_iou: float
    box_iou: float
    score_shift: float


def match(
    first: Sequence[SegmentedObject], second: Sequence[SegmentedObject], size_hw: tuple[int, int], iou_threshold: float
) -> list[Pair]:
    """Match the objects of two answers for a photo of this size, pixels."""
    if not first or not second:
        return []
    masks = _overlaps([_rle(item, size_hw) for item in first], [_rle(item, size_hw) for item in second])
    boxes = _overlaps(_boxes(first), _boxes(second))
    same = np.array([[a.label == b.label for b in second] for a in first])
    candidates = np.where(same, masks, 0.0)
    pairs = []
    while (best := candidates.max()) >= iou_threshold and best > 0:
        i, j = np.unravel_index(int(candidates.argmax()), candidates.shape)
        shift = second[int(j)].score - first[int(i)].score
        pairs.append(Pair(int(i), int(j), float(masks[i, j]), float(boxes[i, j]), shift))
        candidates[i, :] = candidates[:, j] = 0.0
    return pairs


def agreement(first: int, second: int, pairs: Sequence[Pair]) -> float:
    """Agreement of two answers, 0..1: the sum of the pairs' mask IoU over the mean number of objects; 1 if both are empty."""
    return 2 * sum(pair.mask_iou for pair in pairs) / (first + second) if first + second else 1.0


@dataclass(slots=True)
class Totals:
    """Counts over all photos."""

    photos: int = 0
    compared: int = 0
    first: int = 0
    second: int = 0
    pairs: list[Pair] = field(default_factory=list)
    labels: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    took_ms: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    faults: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))

    def summary(self) -> dict[str, Any]:
        """The numbers by name; None for means of nothing."""
        ious, boxes = [pair.mask_iou for pair in self.pairs], [pair.box_iou for pair in self.pairs]
        shifts = [pair.score_shift for pair in self.pairs]
        either = self.first + self.second
        return {
            "photos": self.photos,
            "compared": self.compared,
            "objects": [self.first, self.second],
            "matched": len(self.pairs),
            "matched_share": round(2 * len(self.pairs) / either, 4) if either else None,
            "missed": self.first - len(self.pairs),
            "new": self.second - len(self.pairs),
            "mask_iou": _mean(ious),
            "lowest_mask_iou": round(min(ious), 4) if ious else None,
            "box_iou": _mean(boxes),
            "labels_alone": [sorted(self.labels[0] - self.labels[1]), sorted(self.labels[1] - self.labels[0])],
            "score_shift": _mean(shifts),
            "absolute_score_shift": _mean(map(abs, shifts)),
            "faults": [len(faults) for faults in self.faults],
            "median_ms": [round(float(np.median(times)), 1) if times else None for times in self.took_ms],
            "p95_ms": [round(float(np.percentile(times, 95)), 1) if times else None for times in self.took_ms],
        }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(float(np.mean(listed)), 4) if listed else None


def _rle(item: SegmentedObject, size_hw: tuple[int, int]) -> dict[str, Any]:
    if item.rle is not None:
        return {"size": item.rle["size"], "counts": item.rle["counts"]}
    scale = np.array(size_hw[::-1])
    rings = [(np.reshape(ring, (-1, 2)) * scale).ravel().tolist() for ring in item.polygon if len(ring) >= 6]
    empty = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    return outline_to_rle(rings or empty, size_hw)


def _boxes(objects: Sequence[SegmentedObject]) -> NDArray[np.float64]:
    corners = np.array([item.box for item in objects], np.float64)
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])


def _overlaps(first: Any, second: Any) -> NDArray[np.float64]:
    return np.asarray(rle_masks.iou(first, second, [0] * len(second)), np.float64)
