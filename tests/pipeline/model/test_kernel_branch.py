"""The kernel branch at single positions against the same convolutions on whole maps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.kernel_branch import KernelBranch, neighbours

LEVELS_HW = [(7, 9), (4, 5), (1, 2)]
CHANNELS, HIDDEN, PARAMETERS = 6, 5, 169


def seeded_weights(layers: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of `layers` 3x3 convolutions and the last one, for each level: (levels, K, C, 3, 3), (levels, 169, K)."""
    random = torch.Generator().manual_seed(layers)
    widths = [CHANNELS] + [HIDDEN] * layers
    shapes = [(out, in_, 3, 3) for in_, out in itertools.pairwise(widths)] + [(PARAMETERS, widths[-1])]
    weights = [torch.randn(len(LEVELS_HW), *shape, generator=random) * 0.3 for shape in shapes]
    return weights, [torch.randn(weight.shape[:2], generator=random) for weight in weights]


def on_whole_maps(weights: list[Tensor], biases: list[Tensor], maps: list[Tensor]) -> Tensor:
    """(B, P, 169), as mmdet computes it."""
    outputs = []
    for level, features in enumerate(maps):
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            features = functional.silu(functional.conv2d(features, weight[level], bias[level], padding=1))
        outputs.append(functional.conv2d(features, weights[-1][level, :, :, None, None], biases[-1][level]).flatten(2).mT)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_position_gets_what_the_whole_maps_give(layers, dtype):
    """Corners, borders, levels of one row: also where the window is larger than the level."""
    weights, biases = seeded_weights(layers)
    flat = [*(weight.permute(0, 1, 3, 4, 2).flatten(2) for weight in weights[:-1]), weights[-1]]
    branch = KernelBranch(flat, biases, (8, 16, 32))
    maps = [torch.randn(2, CHANNELS, *hw, generator=torch.Generator().manual_seed(hw[0])).to(dtype) for hw in LEVELS_HW]
    features = torch.cat([one.flatten(2).mT for one in maps], dim=1)
    around = neighbours(LEVELS_HW, branch.reach)
    level = torch.cat([torch.full((height * width,), index) for index, (height, width) in enumerate(LEVELS_HW)])
    mixed = torch.randperm(len(level), generator=torch.Generator().manual_seed(0))
    expected = on_whole_maps(weights, biases, [one.float() for one in maps])
    for image in range(2):
        patches = features[image, around[mixed].clamp(min=0)]
        patches[around[mixed] < 0] = torch.nan  # pixels outside must not be read
        found = branch(patches, around[mixed] >= 0, level[mixed])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected[image, mixed], rtol=1e-4, atol=1e-4)
        same = branch.of_any_level(patches, around[mixed] >= 0, level[mixed])
        torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-4)


def test_wide_layers_may_be_rounded():
    """Sums and the last layer in float32: hundredths of the parameters' spread."""
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(1, 128, 9 * 16, generator=random) / 12, torch.randn(1, PARAMETERS, 128, generator=random) / 11]
    biases = [torch.zeros(1, 128), torch.zeros(1, PARAMETERS)]
    patches, inside = torch.randn(20, 3, 3, 16, generator=random), torch.ones(20, 3, 3, dtype=torch.bool)
    level = torch.zeros(20, dtype=torch.int64)
    expected = KernelBranch(weights, biases, (8,))(patches, inside, level)
    rounded = KernelBranch(weights, biases, (8,)).convert(torch.bfloat16)
    assert [part.dtype for part in rounded.weights] == [torch.bfloat16, torch.float32]
    found = rounded(patches, inside, level)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().mean() < 0.01 * expected.std()


def test_no_positions():
    """An image without instances."""
    weights, biases = seeded_weights(2)
    branch = KernelBranch([weight.flatten(2) for weight in weights], biases, (8, 16, 32))
    none = branch(torch.zeros(0, 5, 5, CHANNELS), torch.zeros(0, 5, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0, PARAMETERS)


def test_neighbours_stay_on_their_level():
    """The positions around one are those of a picture of the level; its own number is in the middle."""
    table = neighbours([(2, 3), (1, 1)], 1)
    assert table.tolist()[4] == [[0, 1, 2], [3, 4, 5], [-1, -1, -1]]
    assert table.tolist()[6] == [[-1, -1, -1], [-1, 6, -1], [-1, -1, -1]]
    assert table[:, 1, 1].tolist() == list(range(7))
