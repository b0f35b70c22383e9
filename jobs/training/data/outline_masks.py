"""Masks of training samples as rings that combine by the even-odd rule, so that holes stay holes.

mmdet's PolygonMasks moves, scales and clips each ring separately, and fills the union of all rings for the loss.
Here rings overlap only if one is a hole in another (`jobs.annotations.outlines`), and filling uses the even-odd rule.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from typing import Any

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.rle import rle_to_mask


class OutlineMasks(PolygonMasks):
    """PolygonMasks in which a ring inside another is a hole."""

    def to_ndarray(self) -> NDArray[np.uint8]:
        """(N, height, width) uint8, 1 is inside."""
        masks = [rings_to_mask(rings, (self.height, self.width)) for rings in self.masks]
        return np.stack(masks) if masks else np.empty((0, self.height, self.width), np.uint8)

    def __getitem__(self, index: Any) -> OutlineMasks:
        return _even_odd(super().__getitem__(index))

    def rescale(self, *args: Any, **kwargs: Any) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().rescale(*args, **kwargs))

    def resize(self, *args: Any, **kwargs: Any) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().resize(*args, **kwargs))

    def flip(self, *args: Any, **kwargs: Any) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().flip(*args, **kwargs))

    def crop(self, bbox: NDArray[Any]) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().crop(bbox))

    def pad(self, *args: Any, **kwargs: Any) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().pad(*args, **kwargs))

    def translate(self, *args: Any, **kwargs: Any) -> OutlineMasks:
        """See PolygonMasks."""
        return _even_odd(super().translate(*args, **kwargs))


def _even_odd(masks: PolygonMasks) -> OutlineMasks:
    return OutlineMasks(masks.masks, masks.height, masks.width)


def rings_to_mask(rings: list[NDArray[np.float64]], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Fill the pixels that are inside an odd number of rings.

    Args:
        rings: each x y x y ..., pixels.
        size_hw: of the mask, pixels.
    Returns:
        (H, W) uint8, 1 is inside.
    """
    height, width = (int(side) for side in size_hw)
    drawn = coco_mask.frPyObjects([ring.tolist() for ring in rings], height, width)
    mask: NDArray[np.uint8] = np.bitwise_xor.reduce([rle_to_mask(rle) for rle in drawn])
    return mask


@TRANSFORMS.register_module()
class LoadOutlines(LoadAnnotations):
    """mmdet's LoadAnnotations with boxes and OutlineMasks. Refuses run lengths, which mmdet would drop without a message.

    Raises:
        TypeError: an object or a crowd has run lengths instead of rings (`read_annotations(training=True)` makes rings).
    """

    def __init__(self) -> None:
        super().__init__(with_bbox=True, with_mask=True, poly2mask=False)

    def _load_masks(self, results: dict[str, Any]) -> None:
        if not all(isinstance(found["mask"], list) for found in results["instances"]):
            raise TypeError(f"{results['img_path']}: an annotation has run lengths where training needs rings.")
        super()._load_masks(results)
        results["gt_masks"] = _even_odd(results["gt_masks"])
