"""Excludes regions marked `iscrowd` from the class loss, because objects there are not annotated one by one.

mmdet's RTMDet reads these regions and leaves them out of its assignment, but its class loss still calls everything in them background.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from typing import Any

from torch import Tensor


def leave_crowds_out(network: Any) -> None:
    """Set the class loss to 0 at priors (grid positions) inside an `iscrowd` region's box, unless they are assigned to an object."""
    head = network.bbox_head
    targets_single = head._get_targets_single

    def targets_but_crowds(
        scores: Tensor, boxes: Tensor, priors: Tensor, valid: Tensor, objects: Any, photo: Any, crowds: Any = None, **kwargs: Any
    ) -> Any:
        targets = targets_single(scores, boxes, priors, valid, objects, photo, crowds, **kwargs)
        if crowds is not None and len(crowds) and targets[0] is not None:
            _anchors, labels, weights, *_ = targets
            weights[within(priors, crowds.bboxes) & (labels == head.num_classes)] = 0
        return targets

    head._get_targets_single = targets_but_crowds


def within(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points are inside any of the boxes.

    Args:
        points: (N, 2 or more), x and y first.
        boxes: (B, 4) left, top, right, bottom.
    Returns:
        (N,) bool.
    """
    x, y = points[:, :1], points[:, 1:2]
    return ((x >= boxes[:, 0]) & (x <= boxes[:, 2]) & (y >= boxes[:, 1]) & (y <= boxes[:, 3])).any(dim=1)
