"""Samples for the losses of training."""

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData


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
