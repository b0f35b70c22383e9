"""The dynamic mask head on a GPU and in exported models: three matrix products for all instances of an image.
On a CPU, `instance_masks` does the same.

mmdet makes a copy of the mask features for each instance and adds two channels: the offset from the cell to the instance's point,
(point - cell) / (8 stride). That part of the first layer is linear in the cell's coordinates, so

    W_xy (point - cell) / (8 s) + W_f features + b  =  [W_f, -W_xy / (8 s), b + W_xy point / (8 s)] [features; cell; 1]

The right factor has 11 channels and is the same for all instances of an image; the instance's point is part of the left factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.types import MASK_STRIDE_PX

CHANNELS = 8
"""Channels of the mask features and of the dynamic layers (mmdet RTMDetInsHead: num_prototypes, dyconv_channels)."""

PARAMETER_COUNTS = ((CHANNELS + 2) * CHANNELS, CHANNELS * CHANNELS, CHANNELS, CHANNELS, CHANNELS, 1)
"""Weights of the three layers, then their biases: 169 in all (mmdet `parse_dynamic_params`)."""

FLOAT16_MAX = 65504.0

_CHUNK = 512
"""Instances at a time, which bounds the memory."""


def packed_mask_logits(
    features: Tensor, parameters: Tensor, points_xy: Tensor, strides: Tensor, counts: Tensor, grids_wh: Tensor
) -> Tensor:
    """Compute the masks of the first `counts` of D instances of each of B images; no shape depends on the data.

    Args:
        features: (B, 8, H, W) float mask features.
        parameters: (B * D, 169) float32 mask parameters, image after image.
        points_xy: (B * D, 2) float32, position of each instance, network pixels.
        strides: (B * D,) float32, stride of each instance's level, network pixels.
        counts: (B,) int64.
        grids_wh: (B, 2) int64, for each image width and height of the grid to compute, from the top left.
    Returns:
        (B * D * H * W,) float16 mask logits: image after image, instance after instance, row after row of the image's grid, without gaps;
        arbitrary values after the last instance.
    Source: mmdet 3.3.0 `rtmdet_ins_head.py::_mask_predict_by_feat_single`.
    """
    batch, _, height, width = features.shape
    slots = len(parameters) // batch
    masks = torch.empty(batch * slots * height * width + 1, dtype=torch.float16, device=features.device)
    slot, y, x = (torch.arange(count, device=features.device) for count in (slots, height, width))
    slot, y = slot[:, None, None], y[:, None]
    first = first_cells(counts, grids_wh)
    for image, own in enumerate(zip(*(layer.split(slots) for layer in layers_of(parameters, points_xy, strides)), strict=True)):
        own_width, own_height = grids_wh[image]
        wanted = (slot < counts[image]) & (y < own_height) & (x < own_width)
        cell = torch.where(wanted, first[image] + (slot * own_height + y) * own_width + x, len(masks) - 1)
        masks.index_copy_(0, cell.flatten(), _masks_of_image(features[image], *own).flatten())
    return masks[:-1]


def masks_of_batch(features: Tensor, parameters: Tensor, points_xy: Tensor, strides: Tensor) -> Tensor:
    """Masks of D instances of each of B images on the whole grid; no shape but the batch depends on the data.

    Args:
        features: (B, 8, H, W) float mask features.
        parameters, points_xy, strides: as for `packed_mask_logits`.
    Returns:
        (B, D, H, W) float32 mask logits.
    """
    batch, _, height, width = features.shape  # not len(): an int, where exporting keeps the batch open
    shared = _with_coordinates(features)
    first, second_bias, second, third_bias, third = (
        layer.unflatten(0, (batch, -1)) for layer in layers_of(parameters, points_xy, strides)
    )
    hidden = torch.matmul(first.flatten(1, 2), shared).relu().unflatten(1, (-1, CHANNELS))
    hidden = (torch.matmul(second, hidden) + second_bias).relu()
    masks: Tensor = (torch.matmul(third, hidden) + third_bias).squeeze(2).unflatten(2, (height, width))
    return masks


def first_cells(counts: Tensor, grids_wh: Tensor) -> Tensor:
    """(B,) int64: index of each image's first cell in the result of `packed_mask_logits`."""
    cells = counts * grids_wh.prod(1)
    return cells.cumsum(0) - cells


def _masks_of_image(
    features: Tensor, first: Tensor, second_bias: Tensor, second: Tensor, third_bias: Tensor, third: Tensor
) -> Tensor:
    height, width = features.shape[1:]
    shared = _with_coordinates(features)
    result = torch.empty((len(first), height * width), dtype=torch.float16, device=features.device)
    for rows in (slice(start, start + _CHUNK) for start in range(0, len(first), _CHUNK)):
        hidden = torch.mm(first[rows].flatten(0, 1), shared).relu_().view(-1, CHANNELS, height * width)
        hidden = torch.baddbmm(second_bias[rows], second[rows], hidden).relu_()
        logits = torch.baddbmm(third_bias[rows], third[rows], hidden).squeeze(1)
        result[rows] = logits.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return result.view(-1, height, width)


def _with_coordinates(features: Tensor) -> Tensor:
    """(..., 8, h, w) to (..., 11, h*w) float32: features, x and y of the cell in network pixels, ones."""
    y, x = torch.meshgrid(
        *(torch.arange(n, device=features.device) * float(MASK_STRIDE_PX) for n in features.shape[-2:]), indexing="ij"
    )
    beside = torch.stack([x, y, torch.ones_like(x)]).expand(*features.shape[:-3], -1, -1, -1)
    return torch.cat([features.float(), beside], -3).flatten(-2)


def layers_of(parameters: Tensor, points_xy: Tensor, strides: Tensor) -> tuple[Tensor, ...]:
    """Split (n, 169) parameters into the first layer's (n, 8, 11) matrix, and bias and weight of the other two layers."""
    w1, w2, w3, b1, b2, b3 = parameters.split(PARAMETER_COUNTS, dim=1)
    w1, b1 = w1.view(-1, CHANNELS, CHANNELS + 2), b1[..., None]
    of_cells = w1[..., :2] / (strides * MASK_STRIDE_PX)[:, None, None]
    of_point = of_cells @ points_xy[..., None]
    first = torch.cat([w1[..., 2:], -of_cells, b1 + of_point], dim=2)
    return first, b2[..., None], w2.view(-1, CHANNELS, CHANNELS), b3[..., None], w3[:, None]
