"""The branch of the head that predicts mask parameters, run only on the positions that NMS kept. Needs torch, but not mmdet.

    all positions' features ─▶ kept ones with their neighbours ─▶ 3x3 ─▶ 3x3 ─▶ 1x1 ─▶ 169 parameters each
                               n x 5 x 5                          3 x 3  1 x 1

mmdet runs these convolutions on all 8,400 positions of a 640 px image and uses the results of at most 100. They are a tenth of the network:
13 % of the embedded model's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 3
"""Kernel size of all convolutions but the last, which is 1x1."""

WIDE = 96
"""Fewest channels for which half precision is faster on a CPU (RTMDet-Ins-tiny has 96). This branch on one core, float32 and bf16: tiny
with 100 instances 3.1 and 2.2 ms, with four 0.35 and 0.45. The embedded model, with 64 channels, is slower in bf16 for up to 50
instances."""


class KernelBranch(nn.Module):
    """3x3 convolutions with SiLU and zero padding, then a 1x1 convolution; each pyramid level has its own weights.

    Args:
        weights: for each layer (levels, K, 9 * C) float, of the last one (levels, 169, K) float32; rows of the window before columns before
            channels.
        biases: for each layer (levels, K), of its weights' type.
        strides: network pixels between neighbouring positions of each level, fine to coarse.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.weights, self.biases = (nn.ParameterList([part.detach() for part in parts]) for parts in (weights, biases))
        self.requires_grad_(False)
        self.strides = strides
        self.reach = (len(weights) - 1) * (WINDOW // 2)
        """Positions that an output depends on, to each side."""

    def convert(self, dtype: torch.dtype, from_channels: int = WIDE) -> KernelBranch:
        """Convert the weights in place, if there are at least `from_channels` channels.

        The last layer stays float32, because it predicts the weights of further layers.
        """
        if self.weights[0].shape[1] >= from_channels:
            for parts in (self.weights, self.biases):
                for layer in range(len(parts) - 1):
                    parts[layer] = nn.Parameter(parts[layer].to(dtype), requires_grad=False)
        return self

    def forward(self, patches: Tensor, inside: Tensor, level: Tensor) -> Tensor:
        """Predict the mask parameters of n positions.

        Args:
            patches: (n, S, S, C) float, the features around each position, S = 2 * reach + 1; any values outside of the level.
            inside: (n, S, S) bool, which of them are inside the level.
            level: (n,) int64, the level of each position.
        Returns:
            (n, 169) float32.
        """
        parameters = patches.new_empty(len(patches), self.biases[-1].shape[1], dtype=torch.float32)
        for index in range(len(self.strides)):
            rows = (level == index).nonzero().squeeze(1)
            if len(rows):
                parameters[rows] = self._of_level(index, patches.index_select(0, rows), inside.index_select(0, rows))
        return parameters

    def of_any_level(self, patches: Tensor, inside: Tensor, level: Tensor) -> Tensor:
        """As `forward`, but with shapes that do not depend on the data: computes all levels and selects each position's own."""

        def product(layer: int, windows: Tensor) -> Tensor:
            weight, bias = self.weights[layer], self.biases[layer]
            outputs = functional.linear(windows, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)
            own = level.view(-1, *(1,) * (outputs.dim() - 1)).expand(*outputs.shape[:-2], 1, outputs.shape[-1])
            kept: Tensor = outputs.gather(-2, own).squeeze(-2)
            return kept

        return self._layers(patches, inside, product)

    def _of_level(self, level: int, features: Tensor, inside: Tensor) -> Tensor:
        def product(layer: int, windows: Tensor) -> Tensor:
            return functional.linear(windows, self.weights[layer][level], self.biases[layer][level])

        return self._layers(features, inside, product)

    def _layers(self, features: Tensor, inside: Tensor, product: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The convolutions, each as one matrix product; positions outside of the level are set to zero before each."""
        *windowed, last = range(len(self.weights))
        for layer in windowed:
            windows = _windows(features.to(self.weights[layer].dtype), inside[..., None])
            features = functional.silu(product(layer, windows))
            inside = inside[:, 1:-1, 1:-1]
        return product(last, features.flatten(1).to(self.weights[last].dtype))


def _windows(features: Tensor, inside: Tensor) -> Tensor:
    """Unfold (n, S, S, C) to 3x3 windows, (n, S - 2, S - 2, 9 * C), with zeros where `inside` (n, S, S, 1) is False."""
    around = features.where(inside, 0).unfold(1, WINDOW, 1).unfold(2, WINDOW, 1)
    return around.permute(0, 1, 2, 4, 5, 3).flatten(3)


def neighbours(levels_hw: Sequence[tuple[int, int]], reach: int) -> Tensor:
    """For each of P positions (level after level, row by row) the indices of the positions around it on its level.

    Returns:
        (P, 2 * reach + 1, 2 * reach + 1) int64; -1 outside of the level.
    """
    side = 2 * reach + 1
    tables: list[Tensor] = []
    for height, width in levels_hw:
        first = sum(map(len, tables))
        numbers = torch.arange(first, first + height * width).view(height, width)
        padded = functional.pad(numbers, (reach,) * 4, value=-1)
        tables.append(padded.unfold(0, side, 1).unfold(1, side, 1).flatten(0, 1))
    return torch.cat(tables)
