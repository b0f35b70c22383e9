"""The field of a mask against the interpolation that mmdet uses."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from pipeline.masks.field import OUTSIDE, find_window, place_samples, read_logits, sample_field
from pipeline.types import MASK_STRIDE_PX
from tests.support.mask_examples import letterbox_of, rough_masks


def sampled(logits, letterbox, step, window):
    """Positions along x and y, and the samples of the window without their border."""
    top, bottom, left, right = window
    height, width = letterbox.scaled_hw
    x, y = place_samples(left, right, step, width), place_samples(top, bottom, step, height)
    samples = sample_field(logits[top:bottom, left:right], x - left * MASK_STRIDE_PX, y - top * MASK_STRIDE_PX)
    border = np.concatenate([samples[0], samples[-1], samples[:, 0], samples[:, -1]])
    assert (border == OUTSIDE).all()
    return x, y, samples[1:-1, 1:-1]


@settings(max_examples=30)
@given(rough_masks(), st.booleans())
def test_samples_are_those_of_bilinear_upsampling(example, mirrored):
    """At every network pixel; on the grid, they are the logits. Samples near 0 are moved by 1e-6."""
    logits, letterbox = example
    values = read_logits(np.ascontiguousarray(logits[::-1, ::-1] if mirrored else logits)[None], letterbox)[0]
    (height, width), whole = letterbox.scaled_hw, (0, values.shape[0], 0, values.shape[1])
    x, y, samples = sampled(values, letterbox, 1, whole)
    assert x.tolist() == [0, *np.arange(width) + 0.5, width]
    assert y.tolist() == [0, *np.arange(height) + 0.5, height]
    wanted = interpolate(torch.from_numpy(values)[None, None], scale_factor=MASK_STRIDE_PX, mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(samples[1:-1, 1:-1], wanted[:height, :width], rtol=1e-4, atol=1e-4)
    x, y, samples = sampled(values, letterbox, MASK_STRIDE_PX, whole)
    rows, columns = (len(ends) - 2 for ends in (y, x))
    assert (rows, columns) == (round(height / MASK_STRIDE_PX), round(width / MASK_STRIDE_PX))
    np.testing.assert_allclose(samples[1:-1, 1:-1], values[:rows, :columns], rtol=1e-5, atol=2e-6)


@settings(max_examples=30)
@given(rough_masks(), st.sampled_from([1, MASK_STRIDE_PX]), st.floats(0.5, 1))
def test_nothing_inside_lies_beyond_the_window(example, step, share):
    """And what is sampled in the window is what is sampled there in the whole mask."""
    logits, letterbox = example
    values = read_logits(logits[None], letterbox)[0]
    values -= np.float32(np.quantile(values, share))  # with as few positive cells
    window = find_window(values)
    x, y, whole = sampled(values, letterbox, step, (0, values.shape[0], 0, values.shape[1]))
    if not (values > 0).any():
        assert window == (0, 0, 0, 0)
        return
    own_x, own_y, samples = sampled(values, letterbox, step, window)
    inside = np.ix_(np.isin(y, own_y), np.isin(x, own_x))
    assert np.array_equal(samples > 0, whole[inside] > 0)
    assert (whole > 0).sum() == (samples > 0).sum()
    top, bottom, left, right = window
    rows, columns = np.nonzero(values > 0)
    assert (rows.min() - top <= 2, bottom - 1 - rows.max() <= 2, columns.min() - left <= 2, right - 1 - columns.max() <= 2) == (
        True,
    ) * 4


def test_logits_are_read_as_finite_numbers():
    letterbox = letterbox_of(64, 64, 64)
    logits = np.arange(2**16, dtype=np.uint16).view(np.float16)[: 1024 * 64].reshape(-1, *letterbox.mask_grid_hw)
    read = read_logits(logits, letterbox)
    assert np.isfinite(read).all()
    finite = np.isfinite(logits)
    assert np.array_equal(read[finite], logits[finite].astype(np.float32))
    assert (read[np.isnan(logits)] == OUTSIDE).all()
    assert set(read[np.isinf(logits)].tolist()) == {65504.0, -65504.0}
    read[:] = 0
    assert logits.view(np.uint16).ravel()[-1] == 2**16 - 1
