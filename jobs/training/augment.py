"""The pictures a training step sees, by mmdet's own transforms.

    load (kept decoded in memory) ─▶ mosaic of 4, for the first part of the run ─▶ scale jitter ─▶ crop to the input
    square ─▶ colour jitter ─▶ mirror ─▶ pad

Scale jitter goes far up on purpose: a person who fills the photo must stay one person at the shipped input size.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmdet.registry import TRANSFORMS

from jobs.annotations.report import AnnotationsError
from jobs.photos import PhotoError, read_photo
from jobs.training import outline_masks  # noqa: F401  (registers LoadOutlines)

GREY = 114  # letterbox grey of RTMDet
JITTER = (0.5, 2.0)
LARGEST_MOSAIC = 1.3
"""Largest long side of a photo in a mosaic, as a multiple of the sample's side."""
MOSAIC_CACHE_PHOTOS = 40


@TRANSFORMS.register_module()
class LoadImageOnce(BaseTransform):
    """Reads each photo once, as the service does, and keeps it decoded: a data set of a thousand 512 px photos is 0.6 GB.

    Args:
        memory_mb: photos beyond this much memory are read again each time.
    Raises:
        AnnotationsError: a photo that cannot be decoded, by name.
    """

    def __init__(self, memory_mb: float = 2048) -> None:
        self._bytes_left = int(memory_mb * 2**20)
        self._photos: dict[str, np.ndarray] = {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["img_path"]
        photo = self._photos.get(path)
        if photo is None:
            photo = self._read(path)
        shape = photo.shape[:2]
        return results | {"img": photo.copy(), "img_shape": shape, "ori_shape": shape}

    def _read(self, path: str) -> np.ndarray:
        try:
            photo = read_photo(Path(path))
        except PhotoError as error:
            raise AnnotationsError(f"{error}.") from error
        if photo.nbytes <= self._bytes_left:
            self._bytes_left -= photo.nbytes
            self._photos[path] = photo
        return photo


@TRANSFORMS.register_module()
class MosaicForAWhile(BaseTransform):
    """Takes the mosaic branch with a given probability, until a number of samples has been made, then never again.

    Counting samples needs no message from the trainer to the loader's worker processes.

    Args:
        mosaic: transforms of a sample that becomes a mosaic.
        single: transforms of a sample that stays one photo.
        probability: share of mosaics while they are on, 0..1.
        stop_after_samples: samples of this worker process after which only single photos come.
    """

    def __init__(self, mosaic: list[Any], single: list[Any], probability: float, stop_after_samples: int) -> None:
        self._mosaic, self._single = Compose(mosaic), Compose(single)
        self._probability, self._samples_left = probability, stop_after_samples

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        self._samples_left -= 1
        wants_mosaic = self._samples_left >= 0 and np.random.random() < self._probability
        made: dict[str, Any] | None = (self._mosaic if wants_mosaic else self._single)(results)
        return made


def train_transforms(
    size_px: int, mosaic_probability: float, mosaic_samples: int, jitter: tuple[float, float] = JITTER, memory_mb: float = 2048
) -> list[Any]:
    """Transforms from an annotated photo to a (size_px, size_px) training sample.

    Args:
        size_px: side of the square sample.
        mosaic_probability: share of samples that are mosaics of four photos, 0..1.
        mosaic_samples: samples of each loader process during which mosaics are made.
        jitter: smallest and largest long side of a single photo, as a multiple of size_px.
        memory_mb: of decoded photos that each loader process keeps.
    Source: mmdet rtmdet-ins_tiny_8xb32-300e_coco.py (scales, crop, colours); jitter of mosaics narrowed as in a short run.
    """
    square = (size_px, size_px)
    mosaic = {"type": "CachedMosaic", "img_scale": square, "pad_val": float(GREY), "max_cached_images": MOSAIC_CACHE_PHOTOS}
    return [
        {"type": "LoadImageOnce", "memory_mb": memory_mb},
        {"type": "LoadOutlines"},
        {
            "type": "MosaicForAWhile",
            "mosaic": [mosaic, _resize((2 * size_px, 2 * size_px), (0.4, LARGEST_MOSAIC))],
            "single": [_resize(square, jitter)],
            "probability": mosaic_probability,
            "stop_after_samples": mosaic_samples,
        },
        {"type": "RandomCrop", "crop_size": square, "recompute_bbox": True, "allow_negative_crop": True},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False},
        {"type": "YOLOXHSVRandomAug"},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "Pad", "size": square, "pad_val": {"img": (GREY, GREY, GREY)}},
        {"type": "PackDetInputs"},
    ]


def image_transforms(size_px: int) -> list[Any]:
    """mmdet's test pipeline: keep-ratio resize, then pad right and bottom to the square. Needs no annotations."""
    square = (size_px, size_px)
    return [
        {"type": "LoadImageOnce", "memory_mb": 0},
        {"type": "Resize", "scale": square, "keep_ratio": True},
        {"type": "Pad", "size": square, "pad_val": {"img": (GREY, GREY, GREY)}},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]


def _resize(scale: tuple[int, int], ratio_range: tuple[float, float]) -> dict[str, Any]:
    return {"type": "RandomResize", "scale": scale, "ratio_range": ratio_range, "keep_ratio": True}
