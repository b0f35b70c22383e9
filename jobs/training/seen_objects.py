"""A training that sees other objects than its annotations hold ends before its first step, and one that sees none ends soon after."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Iterator
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from jobs.annotations.report import AnnotationsError

MIN_SIDE_PX = 1.0
"""Objects whose box is smaller in a sample are left out of it."""
PATIENCE_STEPS = 50


@HOOKS.register_module()
class SeenObjectsHook(Hook):
    """Compares the training set that mmdet built with what was read.

    Args:
        objects: that the annotations hold, without crowds.
        longest_side_px: of a photo in a sample, at most; larger ones are scaled down to it.
    """

    def __init__(self, objects: int, longest_side_px: float) -> None:
        self._objects, self._longest_side_px = objects, longest_side_px
        self._seen = self._steps = 0

    def before_train(self, runner: Runner) -> None:
        """Count."""
        shown = list(_objects_of(runner.train_dataloader.dataset))
        if len(shown) != self._objects:
            raise AnnotationsError(
                f"the training set holds {len(shown):,} objects of the {self._objects:,} in the annotations: mmdet leaves the others out. "
                "Please report this, with a few of the annotations."
            )
        small = [(photo, box) for photo, box in shown if self._largest_side(photo, box) < MIN_SIDE_PX]
        if len(small) == len(shown):
            raise AnnotationsError(
                f"all {len(shown):,} objects are smaller than a pixel in the training samples: train with a larger --image-size, or on "
                "parts of the photos."
            )
        if small:
            photo, box = small[0]
            runner.logger.warning(
                f"{len(small):,} of {len(shown):,} objects are smaller than a pixel in the training samples and never seen, first: one in "
                f"{photo['img_path']} at x {box[0]:.0f}, y {box[1]:.0f}. A larger --image-size shows them."
            )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:  # noqa: ARG002
        """Look whether any object has come so far."""
        if self._seen:
            return
        self._steps += 1
        self._seen = sum(len(sample.gt_instances) for sample in data_batch["data_samples"])
        if not self._seen and self._steps == PATIENCE_STEPS:
            raise AnnotationsError(f"not one object came in the first {self._steps} training steps: there is nothing to learn.")

    def _largest_side(self, photo: dict[str, Any], box: list[float]) -> float:
        """Of the shorter side of an object's box, the length in pixels in the largest sample."""
        scale = self._longest_side_px / max(photo["width"], photo["height"])
        return float(scale * min(box[2] - box[0], box[3] - box[1]))


def _objects_of(dataset: Any) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """Photo and box x1 y1 x2 y2 of each object that is no crowd."""
    for index in range(len(dataset)):
        photo = dataset.get_data_info(index)
        yield from ((photo, found["bbox"]) for found in photo["instances"] if not found["ignore_flag"])
