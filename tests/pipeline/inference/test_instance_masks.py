"""pipeline.inference.instance_masks against mmdet's own mask head, and against the matrix products that GPUs use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference.instance_masks import _compute, mask_logits
from pipeline.inference.mask_head import FLOAT16_MAX, masks_of_batch
from pipeline.inference.postprocess import load_loops
from pipeline.model.spec import build_network, nano_spec

STRIDES = (8, 16, 32)


def inputs(seed: int, count: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Features (8, H, W), parameters (n, 169), points (n, 2) and strides (n,)."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, 8 * max(height, width), (count, 2))
    parts = random.normal(size=(8, height, width)), random.normal(0, 0.3, (count, 169)), points, random.choice(STRIDES, count)
    return tuple(part.astype(np.float32) for part in parts)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # mmdet's grid of points
def test_they_equal_mmdets():
    head = build_network(nano_spec()).bbox_head
    from mmdet.models.dense_heads import RTMDetInsSepBNHead

    features, parameters, points, strides = inputs(0, 12, 20, 30)
    priors = torch.from_numpy(np.column_stack([points, strides, strides]))
    arguments = head, torch.from_numpy(features), torch.from_numpy(parameters), priors
    expected = RTMDetInsSepBNHead._mask_predict_by_feat_single(*arguments)
    found = mask_logits(features, (20, 30), parameters, points, strides)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 5), height=st.integers(1, 40), width=st.integers(1, 40), data=st.data()
)
def test_they_equal_the_matrix_products(seed, count, height, width, data):
    grid = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    features, *of_instances = inputs(seed, count, height, width)
    found = mask_logits(features, grid, *of_instances)
    assert found.shape == (count, *grid)
    if count:
        products = masks_of_batch(torch.from_numpy(features)[None], *map(torch.from_numpy, of_instances))[0]
        np.testing.assert_allclose(found, products[:, : grid[0], : grid[1]].numpy(), rtol=1e-3, atol=2e-3)


def test_an_instance_does_not_depend_on_the_others():
    features, parameters, points, strides = inputs(1, 5, 40, 40)
    together = mask_logits(features, (31, 40), parameters, points, strides)
    for n in range(5):
        alone = mask_logits(features, (31, 40), *(part[n : n + 1] for part in (parameters, points, strides)))
        np.testing.assert_array_equal(together[n], alone[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_beyond_float16_are_its_largest(sign):
    features, parameters, points, strides = inputs(2, 1, 8, 8)
    parameters[:, -1] = sign * 1e9
    assert (mask_logits(features, (8, 8), parameters, points, strides) == sign * np.float16(FLOAT16_MAX)).all()


@pytest.mark.parametrize("part", ["features", "parameters"])
def test_what_is_not_a_number_stays_visible(part):
    """It is outside of every outline (`masks.field`), instead of a mask that looks real."""
    features, parameters, points, strides = inputs(3, 2, 8, 8)
    if part == "features":
        features[4, 2, 3] = np.nan
    else:
        parameters[1] = np.nan
    bad = np.isnan(mask_logits(features, (8, 8), parameters, points, strides))
    expected = np.zeros((2, 8, 8), bool)
    expected[(slice(None), 2, 3) if part == "features" else 1] = True
    np.testing.assert_array_equal(bad, expected)


def test_no_image_waits_for_a_compilation():
    """What `load_loops` calls serves every call."""
    load_loops()
    features, *of_instances = inputs(4, 3, 8, 8)
    for count in (0, 3):
        mask_logits(features, (8, 8), *(part[:count] for part in of_instances))
    assert len(_compute.signatures) == 1
