"""mmdet's losses, changed: without crowds, with less memory and time, in float32.

A prior (mmdet's word) is a position of the network's grid. A positive is a prior that is assigned to an object; an object has up to 13, and
each predicts the whole mask. In photos of at most 64 positives, the mask loss has mmdet's numbers.

- At most 64 of a photo's positives are in the mask loss, as in mmdet's BoxInst. A photo of 50 objects has 300: without this limit
  their masks took three quarters of a training step at 640 px on a CPU.
- Target masks are thinned to the loss's resolution before they are repeated for each positive, not after: 16 times less memory.
- Centres of mass, for the assignment, are computed without a product of masks and 64-bit coordinates on a CPU.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from functools import partial
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.assigners import dynamic_soft_label_assigner
from mmdet.utils import reduce_mean
from torch import Tensor
from torch.nn import functional

POSITIVES_A_PHOTO = 64
"""Positives of a photo in the mask loss, at most. Source: `topk_masks_per_img` in mmdet's configuration of BoxInst, which
takes the best scores; here they are spread over the objects."""
mmdet_center_of_mass = dynamic_soft_label_assigner.center_of_mass


def save_mask_memory(network: Any) -> None:
    """Make the head of mmdet's RTMDet-Ins compute its mask loss here, and the assignment its centres of mass."""
    dynamic_soft_label_assigner.center_of_mass = center_of_mass
    network.bbox_head.loss_mask_by_feat = partial(mask_loss, network.bbox_head)


def mask_loss(head: Any, features: Tensor, kernels: Tensor, assigned: list[Any], objects: list[Any]) -> Tensor:
    """Mean mask loss of a batch, a scalar.

    Args:
        head: mmdet's RTMDetInsHead.
        features: (B, 8, H, W) prototypes.
        kernels: (B, priors, 169) dynamic parameters of every prior.
        assigned: mmdet's SamplingResult of each photo.
        objects: annotations of each photo; `masks` are (N, H * stride, W * stride) bool.
    """
    logits, targets = [], []
    start, step = head.mask_loss_stride // 2, head.mask_loss_stride
    for feature, kernel, found, photo in zip(features, kernels, assigned, objects, strict=True):
        few = spread(found.pos_assigned_gt_inds, POSITIVES_A_PHOTO)
        logits.append(head._mask_predict_by_feat_single(feature, kernel[found.pos_inds[few]], found.pos_priors[few]))
        targets.append(photo.masks[:, start::step, start::step][found.pos_assigned_gt_inds[few]])
    masks = torch.cat(logits)
    mean_number = reduce_mean(features.new_tensor([len(masks)])).clamp_(min=1).item()
    if len(masks) == 0:
        return features.sum() * 0
    scale = head.prior_generator.strides[0][0] // head.mask_loss_stride
    masks = functional.interpolate(masks[None], scale_factor=scale, mode="bilinear", align_corners=False)[0]
    loss: Tensor = head.loss_mask(masks, torch.cat(targets), weight=None, avg_factor=mean_number)
    return loss


def spread(owners: Tensor, limit: int) -> Tensor:
    """Indices of at most `limit` positives, spread evenly over the objects; all of them, in order, if there are no more.

    Args:
        owners: (P,) index of each positive's object.
    Returns:
        (min(P, limit),) indices.
    """
    if len(owners) <= limit:
        return torch.arange(len(owners), device=owners.device)
    by_object = owners.argsort(stable=True)
    return by_object[torch.arange(limit, device=owners.device) * len(owners) // limit]


def center_of_mass(masks: Tensor, eps: float = 1e-7) -> Tensor:
    """Centres of mass, (N, 2) x y in pixels, equal to mmdet's to the last bit.

    Args:
        masks: (N, H, W) bool.
        eps: smallest area, which empty masks have.
    """
    if masks.device.type != "cpu":
        centers: Tensor = mmdet_center_of_mass(masks, eps)
        return centers
    counts = [torch.from_numpy(masks.numpy().sum(axis=axis, dtype=np.int32)).long() for axis in (1, 2)]
    area = counts[0].sum(dim=1).float().clamp(min=eps)
    return torch.stack([(count * torch.arange(count.shape[1])).sum(dim=1) / area for count in counts], dim=1)


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


def keep_losses_in_fp32(network: Any) -> None:
    """Make the head compute its losses in float32, regardless of the precision of its layers."""
    head = network.bbox_head
    loss_by_feat, device = head.loss_by_feat, next(network.parameters()).device.type

    def loss_in_fp32(*feats: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return loss_by_feat(*_to_fp32(feats), **kwargs)

    head.loss_by_feat = loss_in_fp32


def _to_fp32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to_fp32(part) for part in value)
    return value
