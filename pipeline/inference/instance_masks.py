"""Masks of one image's instances on the host: the dynamic mask head as compiled loops.

    mask features (8, h, w), x, y ─▶ 8 channels ─▶ ReLU ─▶ 8 channels ─▶ ReLU ─▶ 1 mask logit a cell; the weights are the instance's own

The loops take a block of cells at a time, which stays in the first cache. As matrix products of PyTorch (`mask_head`) the same takes three
times as long: the matrices are small, and the hidden layers are written to memory in between.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compiled import compiled, compiled_fused
from pipeline.inference.mask_head import CHANNELS, FLOAT16_MAX, PARAMETER_COUNTS
from pipeline.types import MASK_STRIDE_PX

_BLOCK = 256
"""Cells at a time: 26 kB of features and hidden layers."""

_W2, _W3, _B1, _B2, _B3 = np.cumsum(PARAMETER_COUNTS[:-1]).tolist()
"""Where each part of an instance's parameters begins, after the weights of the first layer."""

_ZERO, _LARGEST = np.float32(0), np.float32(FLOAT16_MAX)


def mask_logits(
    features: NDArray[np.float32],
    grid_hw: tuple[int, int],
    parameters: NDArray[np.float32],
    points_xy: NDArray[np.float32],
    strides: NDArray[np.float32],
) -> NDArray[np.float16]:
    """Compute the masks of n instances of one image.

    Args:
        features: (8, H, W) mask features.
        grid_hw: rows and columns to compute, from the top left.
        parameters: (n, 169) of the instances' layers.
        points_xy: (n, 2) position of each instance, network pixels.
        strides: (n,) stride of each instance's level, network pixels.
    Returns:
        (n, height, width) float16 mask logits, inside is > 0.
    Source: mmdet 3.3.0 `rtmdet_ins_head.py::_mask_predict_by_feat_single`.
    """
    height, width = grid_hw
    cells = np.empty((CHANNELS + 2, height, width), np.float32)
    cells[:CHANNELS] = features[:, :height, :width]
    cells[CHANNELS] = np.arange(width) * MASK_STRIDE_PX
    cells[CHANNELS + 1] = np.arange(height)[:, None] * MASK_STRIDE_PX
    logits = np.empty((len(parameters), height * width), np.float32)
    _compute(cells.reshape(len(cells), -1), parameters, points_xy, strides, logits)
    return torch.from_numpy(logits).half().numpy().reshape(-1, height, width)


@compiled_fused
def _compute(
    cells: NDArray[np.float32],
    parameters: NDArray[np.float32],
    points_xy: NDArray[np.float32],
    strides: NDArray[np.float32],
    logits: NDArray[np.float32],
) -> None:
    """From the features, x and y of N cells (10, N) to the logits (n, N)."""
    for start in range(0, cells.shape[1], _BLOCK):
        block = cells[:, start : start + _BLOCK].copy()
        first, second = np.empty((CHANNELS, block.shape[1]), np.float32), np.empty((CHANNELS, block.shape[1]), np.float32)
        offsets = np.empty((2, block.shape[1]), np.float32)
        for instance in range(len(parameters)):
            own = parameters[instance]
            for axis in range(2):
                point, unit = points_xy[instance, axis], MASK_STRIDE_PX * strides[instance]
                for cell in range(block.shape[1]):
                    offsets[axis, cell] = (point - block[CHANNELS + axis, cell]) / unit
            _first_layer(own[:_W2].reshape(CHANNELS, CHANNELS + 2), own[_B1:_B2], offsets, block, first)
            _second_layer(own[_W2:_W3].reshape(CHANNELS, CHANNELS), own[_B2:_B3], first, second)
            _last_layer(own[_W3:_B1], own[_B3], second, logits[instance, start : start + _BLOCK])


@compiled_fused
def _first_layer(
    weights: NDArray[np.float32],
    biases: NDArray[np.float32],
    offsets: NDArray[np.float32],
    inputs: NDArray[np.float32],
    outputs: NDArray[np.float32],
) -> None:
    """From the offsets (2, cells) to the point and the first 8 rows of `inputs` to 8 channels, with ReLU."""
    for channel in range(CHANNELS):
        of_x, of_y, bias, own = weights[channel, 0], weights[channel, 1], biases[channel], _as_scalars(weights[channel, 2:])
        for cell in range(outputs.shape[1]):
            total = bias + of_x * offsets[0, cell] + of_y * offsets[1, cell] + _weighted(own, inputs, cell)
            outputs[channel, cell] = _ZERO if total < _ZERO else total  # a value that is not a number stays


@compiled_fused
def _second_layer(
    weights: NDArray[np.float32], biases: NDArray[np.float32], inputs: NDArray[np.float32], outputs: NDArray[np.float32]
) -> None:
    """From 8 channels to 8, with ReLU."""
    for channel in range(CHANNELS):
        bias, own = biases[channel], _as_scalars(weights[channel])
        for cell in range(outputs.shape[1]):
            total = bias + _weighted(own, inputs, cell)
            outputs[channel, cell] = _ZERO if total < _ZERO else total


@compiled_fused
def _last_layer(weights: NDArray[np.float32], bias: np.float32, inputs: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
    own = _as_scalars(weights)
    for cell in range(len(logits)):
        total = bias + _weighted(own, inputs, cell)
        total = _LARGEST if total > _LARGEST else total
        logits[cell] = -_LARGEST if total < -_LARGEST else total


@compiled
def _as_scalars(weights: NDArray[np.float32]) -> tuple[np.float32, ...]:
    """Eight local variables: of an array the compiler must assume that a write to another one changes it, so it would use no vectors."""
    return weights[0], weights[1], weights[2], weights[3], weights[4], weights[5], weights[6], weights[7]


@compiled_fused
def _weighted(w: tuple[np.float32, ...], inputs: NDArray[np.float32], cell: int) -> np.float32:
    """The products of eight channels of one cell, added up. Written out, because the compiler makes vectors of cells only then."""
    low = w[0] * inputs[0, cell] + w[1] * inputs[1, cell] + w[2] * inputs[2, cell] + w[3] * inputs[3, cell]
    high = w[4] * inputs[4, cell] + w[5] * inputs[5, cell] + w[6] * inputs[6, cell] + w[7] * inputs[7, cell]
    total: np.float32 = low + high
    return total
