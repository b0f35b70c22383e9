"""Samples of training: made up for the losses, or of annotated photos."""

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import read_annotations
from jobs.training.data.augment import train_transforms
from jobs.training.data.samples import TrainingPhotos
from tests.support.mask_examples import decode_rle


def sample_of(boxes, side):
    """A square sample whose objects, of one class, are filled rectangles.

    Args:
        boxes: left, top, right, bottom of each, pixels.
        side: of the sample, pixels.
    """
    sample = DetDataSample(metainfo={"img_shape": (side, side), "pad_shape": (side, side), "batch_input_shape": (side, side)})
    masks = np.zeros((len(boxes), side, side), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    rectangles = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    sample.gt_instances = InstanceData(bboxes=rectangles, labels=labels, masks=BitmapMasks(masks, side, side))
    return sample


def photos_of(annotations, mosaic=0.0, jitter=(1.0, 1.0)):
    """The training samples of annotations as `read_annotations` writes them, 128 px."""
    init_default_scope("mmdet")
    return TrainingPhotos(
        seed=5,
        mosaic=mosaic,
        mosaic_samples=1000,
        transforms=train_transforms(128, jitter),
        ann_file=str(annotations.coco_json),
        data_prefix={"img": f"{annotations.images}/"},
        metainfo={"classes": annotations.classes},
        filter_cfg={"filter_empty_gt": False},
    )


def as_crowds(folder, scratch):
    """The tiny set without its last picture, whose ellipse has no annotation; ellipses after the first are crowds as COCO writes them."""
    document = json.loads((folder / "coco.json").read_text())
    document["images"].pop()
    for found in document["annotations"][1:]:
        (rle,) = coco_mask.frPyObjects(found["segmentation"], 96, 128)
        mask = decode_rle(rle).ravel(order="F")
        ends = np.flatnonzero(np.diff(mask)) + 1
        found |= {"segmentation": {"size": [96, 128], "counts": np.diff([0, *ends, mask.size]).tolist()}, "iscrowd": 1}
    (scratch / "crowds.json").write_text(json.dumps(document))
    return read_annotations(scratch / "crowds.json", folder / "photos", scratch, training=True)
