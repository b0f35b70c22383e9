"""The dynamic mask head for all instances of all images: three batched matrix products, mask features never repeated.

mmdet gives each instance its own copy of the mask features, with two channels in front: the way from the cell to the
instance's point, (point - cell) / (8 stride). That part of the first layer is linear in the cell's coordinates, so

    W_xy (point - cell) / (8 s) + W_f features + b  =  [W_f, -W_xy / (8 s), b + W_xy point / (8 s)] [features; cell; 1]

The right factor has 11 channels and is the same for all instances of an image; the point moved into the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.types import MASK_STRIDE_PX

CHANNELS = 8
"""Prototypes, and width of the dynamic layers (mmdet RTMDetInsHead: num_prototypes, dyconv_channels)."""

PARAMETER_COUNTS = ((CHANNELS + 2) * CHANNELS, CHANNELS * CHANNELS, CHANNELS, CHANNELS, CHANNELS, 1)
"""Weights of the three layers, then their biases: 169 in all (mmdet `parse_dynamic_params`)."""

FLOAT16_MAX = 65504.0


def mask_logits(features: Tensor, counts: Tensor, kernels: Tensor, points_xy: Tensor, strides: Tensor) -> Tensor:
    """Masks of n instances of B images.

    Args:
        features: (B, 8, h, w) float mask features, cropped to the cells that are wanted.
        counts: (B,) int64, instances of each image; they sum to n.
        kernels: (n, 169) float32 mask parameters, image after image.
        points_xy: (n, 2) float32, the position each instance was found at, network pixels.
        strides: (n,) float32, network pixels between positions of that level.
    Returns:
        (n, h, w) float16 mask logits, inside is > 0.
    Source: mmdet 3.3.0 `rtmdet_ins_head.py::_mask_predict_by_feat_single`.
    """
    height, width = features.shape[-2:]
    order = counts.argsort(descending=True, stable=True)
    shared = _with_coordinates(features[order])
    first, (second_bias, second), (third_bias, third) = _layers(kernels, points_xy, strides)
    result = torch.empty((len(kernels), height * width), dtype=torch.float16, device=features.device)
    for rows in _chunks(counts, order, _chunk_size(features.device)):
        images = len(rows)
        hidden = torch.bmm(first[rows].view(images, -1, shared.shape[1]), shared[:images])
        rows = rows.flatten()
        hidden = hidden.view(-1, CHANNELS, height * width).relu_()
        hidden = torch.baddbmm(second_bias[rows], second[rows], hidden).relu_()
        logits = torch.baddbmm(third_bias[rows], third[rows], hidden).squeeze(1)
        result[rows] = logits.clamp_(-FLOAT16_MAX, FLOAT16_MAX).half()
    return result.view(-1, height, width)


def _with_coordinates(features: Tensor) -> Tensor:
    """(B, 8, h, w) to (B, 11, h*w) float32: features, x and y of the cell in network pixels, ones."""
    count, _, height, width = features.shape
    y, x = torch.meshgrid(
        *(torch.arange(n, device=features.device) * float(MASK_STRIDE_PX) for n in (height, width)), indexing="ij"
    )
    extra = torch.stack([x, y, torch.ones_like(x)]).expand(count, -1, -1, -1)
    return torch.cat([features.float(), extra], dim=1).flatten(2)


def _layers(kernels: Tensor, points_xy: Tensor, strides: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split 169 parameters into the first layer's (n, 8, 11) matrix and (bias, weight) of the other two."""
    w1, w2, w3, b1, b2, b3 = kernels.split(PARAMETER_COUNTS, dim=1)
    w1, b1 = w1.view(-1, CHANNELS, CHANNELS + 2), b1[..., None]
    of_cells = w1[..., :2] / (strides * MASK_STRIDE_PX)[:, None, None]
    of_point = of_cells @ points_xy[..., None]
    first = torch.cat([w1[..., 2:], -of_cells, b1 + of_point], dim=2)
    return first, (b2[..., None], w2.view(-1, CHANNELS, CHANNELS)), (b3[..., None], w3[:, None])


def _chunks(counts: Tensor, order: Tensor, size: int) -> Iterator[Tensor]:
    """Split the instances into chunks of about `size`, each taking equally many of the images that have some left.

    Yields:
        (a, k) int64 indices of instances of the a images that come first in `order`; where an image has fewer than k left,
        its last one is repeated.
    """
    ends = counts.cumsum(0)[order, None]
    counts = counts[order, None]
    done, most = 0, int(counts[0])
    while done < most:
        active = int((counts > done).sum())
        step = min(max(1, size // active), most - done)
        slots = torch.arange(done, done + step, device=counts.device)
        yield (ends - counts + torch.minimum(slots, counts - 1))[:active]
        done += step


def _chunk_size(device: torch.device) -> int:
    """Instances at a time: what two hidden layers need stays in a CPU core's cache, or fills a GPU."""
    return 4 if device.type == "cpu" else 512
