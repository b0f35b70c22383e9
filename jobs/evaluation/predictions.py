"""Predictions from mmdet, and checks for predictions of all sources. Every source returns a list of COCO results.

a checkpoint by mmdet's own test path ─┐
a COCO results file                    ├─▶ [{"image_id", "category_id", "bbox", "score", "segmentation"}, …]
(our engine, a running service) ───────┘
"""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from pycocotools import mask as rle_masks

from jobs.annotations.datasets import Annotations, AnnotationsError
from jobs.annotations.photo_files import missing_photos
from jobs.command_line import progress
from jobs.evaluation.coco_results import CocoResults, coco_result
from jobs.photo_copies import thumbnails
from jobs.training.data import augment  # noqa: F401  (registers LoadImageOnce)
from pipeline.inference.devices import choose_torch_device
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.spec import ModelSpec, mmdet_config
from pipeline.types import SegmentedObject

MAX_NAMED = 10


def predict_with_mmdet(
    checkpoint: Checkpoint, annotations: Annotations, input_size_px: int | None = None, white_level: int | None = None
) -> CocoResults:
    """Run mmdet's own test path (its transforms, network, NMS and masks) photo by photo, on the first GPU if there is one.

    On a GPU, convolutions are in TF32: PyTorch's default, and so mmdet's.

    Args:
        checkpoint: the model; its classes are matched to the annotations' categories by name.
        annotations: whose photos to score.
        input_size_px: side of the square network input, pixels; None takes the model's.
        white_level: as in DecodeLimits.
    Raises:
        AnnotationsError: model and annotations share no label.
    """
    truth = annotations.document()
    category_ids = category_ids_of(checkpoint.spec.classes, truth)
    predictor = MmdetPredictor(checkpoint, input_size_px, white_level)
    results: CocoResults = []
    for image in progress(truth["images"]):
        found, size_hw = predictor.instances(annotations.images / image["file_name"])
        results += [
            coco_result(image["id"], category_ids[int(label)], box, score, _rle_of(mask, size_hw))
            for box, score, label, mask in zip(found.bboxes, found.scores, found.labels, found.masks, strict=True)
            if int(label) in category_ids
        ]
    return results


class MmdetPredictor:
    """mmdet's own test path, a photo at a time, on the first GPU if there is one.

    Args:
        checkpoint: the model.
        input_size_px: side of the square input, when another than the model's own is wanted.
        white_level: as in DecodeLimits.
    """

    def __init__(self, checkpoint: Checkpoint, input_size_px: int | None = None, white_level: int | None = None) -> None:
        spec = checkpoint.spec
        self._classes = spec.classes
        self._network = checkpoint.network().to(choose_torch_device("auto"))
        self._load = Compose(image_transforms(replace(spec, input_size=input_size_px or spec.input_size), white_level))

    def instances(self, photo: Path) -> tuple[Any, tuple[int, int]]:
        """mmdet's `pred_instances` as NumPy arrays: bboxes (N, 4) pixels, scores, labels, masks (N, h, w), the highest score first; and the
        photo's (height, width). h or w are some pixels less where the sides are not scaled alike, as 6000 x 4000 to 640 x 427: mmdet
        scales masks back by the other side's factor.

        Raises:
            AnnotationsError: the photo cannot be read.
        """
        try:
            sample = self._load({"img_path": str(photo), "img_id": 0})
        except Exception as error:  # mmcv's and cv2's, of every type
            raise AnnotationsError(f"{photo.name}: the photo cannot be read: {error}") from error
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        with torch.inference_mode(), known_warnings_ignored():
            scored = self._network.test_step(batch)[0]
        height, width = scored.ori_shape[:2]
        return scored.pred_instances.cpu().numpy(), (int(height), int(width))

    def predict(self, photo: Path) -> list[SegmentedObject]:
        """The same as the contract's objects, masks as run lengths.

        Raises:
            AnnotationsError: the photo cannot be read.
        """
        found, (height, width) = self.instances(photo)
        objects = []
        for box, score, label, mask in zip(found.bboxes, found.scores, found.labels, found.masks, strict=True):
            rle = _rle_of(mask, (height, width))
            x1, y1, x2, y2 = (box / (width, height, width, height)).clip(0, 1).tolist()
            objects.append(SegmentedObject((x1, y1, x2, y2), self._classes[int(label)], float(score), [], rle=rle))
        return objects


def image_transforms(spec: ModelSpec, white_level: int | None = None) -> list[Any]:
    """mmdet's test pipeline with the service's decoder. Needs no annotations."""
    return [{"type": "LoadImageOnce", "memory_mb": 0, "white_level": white_level}, *mmdet_config(spec).test_pipeline[1:]]


def check_photos(annotations: Annotations, truth: dict[str, Any]) -> None:
    """Raise AnnotationsError if photos are missing or cannot be decoded, before the first one is scored."""
    if missing := missing_photos(truth["images"], annotations.images):
        raise AnnotationsError(f"{annotations.report.file}: {missing}.")
    if broken := thumbnails([annotations.images / photo["file_name"] for photo in truth["images"]]).broken:
        raise AnnotationsError(f"{annotations.report.file}: {broken}")


def check_sizes(truth: dict[str, Any], predictions: CocoResults) -> None:
    """Raise AnnotationsError if a mask has another size than its photo's annotation: their IoU would be 0.

    Cameras store photos sideways with an EXIF orientation. Scoring rotates them upright; some annotation tools do not.
    """
    images = {image["id"]: image for image in truth["images"]}
    for prediction in predictions:
        image, segmentation = images.get(prediction["image_id"]), prediction["segmentation"]
        if image is None or not isinstance(segmentation, dict):
            continue
        (height, width), annotated = segmentation["size"], (image["width"], image["height"])
        if (width, height) != annotated:
            raise AnnotationsError(
                f"{image['file_name']} was scored as {width} x {height} pixels but is annotated as {annotated[0]} x {annotated[1]}. "
                "Scoring rotates photos by their EXIF orientation; annotations must be for the upright photo."
            )


def category_ids_of(classes: tuple[str, ...], truth: dict[str, Any]) -> dict[int, int]:
    """Map class channels to COCO category ids by name; channels whose label is not in the annotations are left out."""
    known = {category["name"]: category["id"] for category in truth["categories"]}
    matched = {channel: known[name] for channel, name in enumerate(classes) if name in known}
    if not matched:
        raise AnnotationsError(
            f"the model has the labels {', '.join(classes)}, the annotations {', '.join(known)}: none in common."
        )
    apart = [name for name in classes if name not in known], [name for name in known if name not in classes]
    for names, whose in zip(
        apart, ("the annotations do not know, so they are not counted", "the model does not know"), strict=True
    ):
        if names:
            print(f"labels that {whose}: {', '.join(names[:MAX_NAMED])}{' …' if len(names) > MAX_NAMED else ''}", file=sys.stderr)
    return matched


def _rle_of(mask: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """A mask of the photo's size, with nothing in the rows and columns that mmdet's lacks."""
    whole = np.zeros(size_hw, np.uint8, order="F")
    whole[: mask.shape[0], : mask.shape[1]] = mask
    rle = rle_masks.encode(whole)
    return {"size": rle["size"], "counts": rle["counts"].decode()}
