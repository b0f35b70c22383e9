"""Augmentation of training samples, with mmdet's transforms.

    load (kept decoded in memory) ─▶ mosaic of 4, for the first part of the run ─▶ scale jitter ─▶ crop to the input
    square ─▶ colour jitter ─▶ mirror ─▶ pad

`jobs.training.data.samples` decides the order of photos and which samples are mosaics. The scale jitter has a large upper bound so that
the model also learns persons who fill the photo.

mmdet's PolygonMasks moves, scales and clips each ring separately, and fills the union of all rings for the loss. Here rings overlap only if
one is a hole in another (`jobs.annotations.outlines`), and filling uses the even-odd rule.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import CachedMosaic, LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jobs.annotations.report import AnnotationsError
from jobs.photos import PhotoError, read_photo
from pipeline.images.letterbox import PAD_VALUE
from pipeline.masks.rle import rle_to_mask

JITTER = (0.5, 2.0)
LARGEST_MOSAIC = 1.3
"""Largest long side of a photo in a mosaic, as a multiple of the sample's side."""


@TRANSFORMS.register_module()
class LoadImageOnce(BaseTransform):
    """Reads each photo once, with the service's decoder, and caches it decoded: 0.6 GB for a thousand photos of 512 px.

    Args:
        memory_mb: size of the cache; other photos are read each time.
        white_level: as in DecodeLimits.
    Raises:
        AnnotationsError: a photo cannot be decoded; the message names it.
    """

    def __init__(self, memory_mb: float = 2048, white_level: int | None = None) -> None:
        self._white_level = white_level
        self._bytes_left = int(memory_mb * 2**20)
        self._photos: dict[str, np.ndarray] = {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample with its pixels (`img`) and their size."""
        path = results["img_path"]
        photo = self._photos.get(path)
        if photo is None:
            photo = self._read(path)
        shape = photo.shape[:2]
        return results | {"img": photo.copy(), "img_shape": shape, "ori_shape": shape}

    def _read(self, path: str) -> np.ndarray:
        try:
            photo = read_photo(Path(path), white_level=self._white_level)
        except PhotoError as error:
            raise AnnotationsError(f"{error}.") from error
        if photo.nbytes <= self._bytes_left:
            self._bytes_left -= photo.nbytes
            self._photos[path] = photo
        return photo


class OutlineMasks(PolygonMasks):
    """PolygonMasks in which a ring inside another is a hole."""

    def to_ndarray(self) -> NDArray[np.uint8]:
        """(N, height, width) uint8, 1 is inside an odd number of rings."""
        masks = np.zeros((len(self.masks), int(self.height), int(self.width)), np.uint8)
        for mask, rings in zip(masks, self.masks, strict=True):
            drawn = coco_mask.frPyObjects([ring.tolist() for ring in rings], *mask.shape)
            mask[:] = np.bitwise_xor.reduce([rle_to_mask(rle) for rle in drawn])
        return masks


def _even_odd(masks: PolygonMasks) -> OutlineMasks:
    return OutlineMasks(masks.masks, masks.height, masks.width)


def _of_even_odd(name: str) -> Callable[..., OutlineMasks]:
    """A method of PolygonMasks, which returns PolygonMasks, for OutlineMasks."""
    return lambda self, *args, **kwargs: _even_odd(getattr(PolygonMasks, name)(self, *args, **kwargs))


for _name in ("__getitem__", "rescale", "resize", "flip", "crop", "pad", "translate"):
    setattr(OutlineMasks, _name, _of_even_odd(_name))


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


@TRANSFORMS.register_module()
class MosaicOfGiven(CachedMosaic):
    """mmdet's CachedMosaic, but of the photo and the three in its `mix_results` instead of photos from a cache."""

    def transform(self, results: dict[str, Any]) -> Any:
        """Combine four photos."""
        others = results.pop("mix_results")
        self.results_cache = [*others, others[-1]]  # it makes no mosaic with fewer than five in its cache, the photo counted in
        return super().transform(results)

    def get_indexes(self, cache: list[Any]) -> list[int]:  # noqa: ARG002
        """Indices of the three other photos."""
        return [0, 1, 2]


def train_transforms(
    size_px: int,
    jitter: tuple[float, float] = JITTER,
    *,
    flip: bool = True,
    memory_mb: float = 2048,
    white_level: int | None = None,
) -> dict[str, list[Any]]:
    """Transforms from an annotated photo to a (size_px, size_px) training sample, as `TrainingPhotos` takes them.

    Args:
        size_px: side of the square sample.
        jitter: smallest and largest long side of a single photo, as a multiple of size_px.
        flip: mirror samples with probability 0.5.
        memory_mb: cache of decoded photos in each loader process.
        white_level: as in DecodeLimits.
    Source: mmdet rtmdet-ins_tiny_8xb32-300e_coco.py (scales, crop, colours); jitter of mosaics narrowed as in a short run. As there, crops
    without objects are trained on as background; here, a sample whose objects are all smaller than a pixel is, too.
    """
    square = (size_px, size_px)
    finish: list[Any] = [
        {"type": "RandomCrop", "crop_size": square, "recompute_bbox": True, "allow_negative_crop": True},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False},  # False: keeps a sample without objects
        {"type": "YOLOXHSVRandomAug"},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "Pad", "size": square, "pad_val": {"img": (PAD_VALUE,) * 3}},
        {"type": "PackDetInputs"},
    ]
    return {
        "load": [{"type": "LoadImageOnce", "memory_mb": memory_mb, "white_level": white_level}, {"type": "LoadOutlines"}],
        "mosaic": [
            {"type": "MosaicOfGiven", "img_scale": square, "pad_val": float(PAD_VALUE)},
            _resize((2 * size_px, 2 * size_px), (0.4, LARGEST_MOSAIC)),
        ],
        "single": [_resize(square, jitter)],
        "finish": [step for step in finish if flip or step["type"] != "RandomFlip"],
    }


def _resize(scale: tuple[int, int], ratio_range: tuple[float, float]) -> dict[str, Any]:
    return {"type": "RandomResize", "scale": scale, "ratio_range": ratio_range, "keep_ratio": True}
