"""Ends a training whose data set holds other objects than the annotations, or whose samples contain no objects."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Iterator
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from jobs.annotations.report import AnnotationsError

MIN_SIDE_PX = 1.0
"""Objects with a smaller box in a sample are left out."""
PATIENCE_STEPS = 50


@HOOKS.register_module()
class SeenObjectsHook(Hook):
    """Compares the objects in mmdet's training set with those in the annotations.

    Args:
        objects: number in the annotations, without crowds.
        longest_side_px: of a photo in a sample, at most; larger ones are scaled down to it.
    """

    def __init__(self, objects: int, longest_side_px: float) -> None:
        self._objects, self._longest_side_px = objects, longest_side_px
        self._seen = self._steps = 0

    def before_train(self, runner: Runner) -> None:
        """Compare the number of objects, and warn about objects smaller than a pixel."""
        shown = list(_objects_of(runner.train_dataloader.dataset))
        if len(shown) != self._objects:
            raise AnnotationsError(
                f"the training set holds {len(shown):,} objects of the {self._objects:,} in the annotations: mmdet leaves the others out. "
                "Please report this, with a few of the annotations."
            )
        small = [(photo, box) for photo, box in shown if self._shorter_side_at_most(photo, box) < MIN_SIDE_PX]
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
        """Stop if no sample has contained an object so far."""
        if self._seen:
            return
        self._steps += 1
        self._seen = sum(len(sample.gt_instances) for sample in data_batch["data_samples"])
        if not self._seen and self._steps == PATIENCE_STEPS:
            raise AnnotationsError(f"the samples of the first {self._steps} training steps contain no object.")

    def _shorter_side_at_most(self, photo: dict[str, Any], box: list[float]) -> float:
        """Length of the shorter side of an object's box in its largest sample, pixels."""
        scale = self._longest_side_px / max(photo["width"], photo["height"])
        return float(scale * min(box[2] - box[0], box[3] - box[1]))


def _objects_of(dataset: Any) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """Photo and box x1 y1 x2 y2 of each object, without crowds."""
    for index in range(len(dataset)):
        photo = dataset.get_data_info(index)
        yield from ((photo, found["bbox"]) for found in photo["instances"] if not found["ignore_flag"])
