"""Ends a training whose data set holds other objects than the annotations, or whose samples contain no objects."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

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
        dataset = runner.train_dataloader.dataset
        photos = map(dataset.get_data_info, range(len(dataset)))
        shown = [(photo, found["bbox"]) for photo in photos for found in photo["instances"] if not found["ignore_flag"]]
        if len(shown) != self._objects:
            raise AnnotationsError(
                f"the training set holds {len(shown):,} objects of the {self._objects:,} in the annotations: mmdet leaves the others out. "
                "Please report this, with a few of the annotations."
            )
        small = []
        for photo, box in shown:
            scale = self._longest_side_px / max(photo["width"], photo["height"])
            if scale * min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX:
                small.append((photo, box))
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
