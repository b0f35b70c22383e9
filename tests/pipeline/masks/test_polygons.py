"""Polygons as they are sent: rounded, and valid even so."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.encode import instances_to_objects, load_loops
from pipeline.masks.polygons import Polygons
from pipeline.types import Instances, Letterbox, OutlineOptions
from tests.support.mask_examples import ellipse_logits, letterbox_of, mask_to_polygons, rough_masks

VGA = letterbox_of(480, 640)


def _geometry(polygons: Polygons) -> shapely.Geometry:
    """What the rings mean, combined by the even-odd rule; fails where one of them is invalid or two cross."""
    outer, holes = ([shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in rings] for rings in polygons)
    assert shapely.is_valid([*outer, *holes]).all()
    for a, b in itertools.combinations([*outer, *holes], 2):
        assert not a.overlaps(b)
    geometry = shapely.MultiPolygon()
    for ring in sorted([*outer, *holes], key=lambda ring: ring.area, reverse=True):
        geometry = geometry.symmetric_difference(ring)
    return geometry


@settings(max_examples=50)
@given(
    rough_masks(),
    st.sampled_from([1, 2, 3, 4, 5, 8, 17, None]),
    st.sampled_from(["drop", "rings"]),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([1, 12]),
)
def test_valid_at_any_number_of_decimals(example, decimals, holes, tolerance_px, enlarged):
    """However rough the mask and few the digits: rings are simple, have an area, and do not cross; holes lie in their parts."""
    logits, small = example
    letterbox = Letterbox(tuple(side * enlarged for side in small.original_hw), small.scaled_hw, small.size)
    polygons = mask_to_polygons(logits, letterbox, OutlineOptions(tolerance_px, decimals=decimals, holes=holes))
    geometry = _geometry(polygons)
    rings = [np.reshape(ring, (-1, 2)) for ring in (*polygons.outer, *polygons.holes)]
    for points in rings:
        assert len(points) >= 4
        assert (points[0] == points[-1]).all()
        assert ((points >= 0) & (points <= 1)).all()
        assert decimals is None or (points == np.round(points, decimals)).all()
    assert holes == "rings" or not polygons.holes
    outer, inner = (sum(shapely.Polygon(np.reshape(ring, (-1, 2))).area for ring in kind) for kind in polygons)
    assert geometry.area == pytest.approx(outer - inner, abs=1e-9)


@pytest.mark.parametrize("max_points", [2**62, 2**63, 10**30])
def test_any_budget_is_accepted(max_points):
    """One that no machine integer holds is no limit."""
    logits, letterbox = ellipse_logits(VGA, (40, 30, 15, 10)), VGA
    assert mask_to_polygons(logits, letterbox, OutlineOptions(max_points=max_points)) == mask_to_polygons(
        logits, letterbox, OutlineOptions()
    )


@settings(max_examples=30)
@given(rough_masks(), st.integers(3, 60), st.sampled_from([2, 3, 5]))
def test_budget_is_kept_when_rounded(example, max_points, decimals):
    """Snapping to a coarse grid adds no point over the budget."""
    logits, letterbox = example
    polygons = mask_to_polygons(logits, letterbox, OutlineOptions(1.0, max_points, decimals, holes="rings"))
    _geometry(polygons)
    assert sum(len(ring) // 2 - 1 for ring in (*polygons.outer, *polygons.holes)) <= max_points


@pytest.mark.parametrize("decimals", [3, 4])
def test_few_decimals_keep_the_shape(decimals):
    """A ragged mask of 12 Mpx at 3 decimals, a grid of 4 x 3 pixels: what is repaired is still the same mask."""
    rng = np.random.default_rng(0)
    letterbox = letterbox_of(3000, 4000)
    logits = ellipse_logits(letterbox, (40, 30, 25, 20)) + rng.normal(size=letterbox.mask_grid_hw) * 2
    options = OutlineOptions(holes="rings", decimals=decimals)
    exact = _geometry(mask_to_polygons(logits.astype(np.float16), letterbox, OutlineOptions(holes="rings", decimals=None)))
    rounded = _geometry(mask_to_polygons(logits.astype(np.float16), letterbox, options))
    assert exact.intersection(rounded).area / exact.union(rounded).area > 0.99


def test_largest_first():
    """The first outer ring is the largest, and the first hole."""
    logits = ellipse_logits(VGA, (8, 8, 3, 3), (50, 30, 20, 20), (45, 30, -3, 3), (55, 30, -6, 6), (20, 45, 6, 6))
    for rings in mask_to_polygons(logits, VGA, OutlineOptions(holes="rings")):
        areas = [shapely.Polygon(np.reshape(ring, (-1, 2))).area for ring in rings]
        assert len(areas) >= 2
        assert areas == sorted(areas, reverse=True)


def test_a_speck_is_gone_when_it_has_no_area_left():
    """One decimal is a tenth of the image; what falls between its points is no polygon."""
    logits = np.full(VGA.mask_grid_hw, -4, np.float16)
    logits[33, 44] = 4
    assert mask_to_polygons(logits, VGA, OutlineOptions(decimals=1)) == ([], [])
    assert len(mask_to_polygons(logits, VGA, OutlineOptions()).outer) == 1


def _compiled() -> dict[str, int]:
    """How many versions of each compiled function there are in this process."""
    modules = [module for name, module in sys.modules.items() if name.startswith("pipeline.masks.")]
    functions = {f for module in modules for f in vars(module).values() if hasattr(f, "signatures")}
    return {f"{f.__module__}.{f.__name__}": len(f.signatures) for f in functions}


def test_nothing_is_compiled_after_the_warm_up():
    """Whatever comes: read-only arrays, slices, other options, masks that have to be repaired."""
    load_loops()
    before = _compiled()
    assert sum(before.values()) >= 4  # what is called from Python; what these call is compiled with them
    rng = np.random.default_rng(0)
    letterbox = letterbox_of(1000, 1000, 320)
    logits = rng.normal(size=(6, *letterbox.mask_grid_hw)).astype(np.float16)
    logits.flags.writeable = False
    boxes, scores, labels = np.zeros((3, 4), np.float32), np.ones(3, np.float32), np.zeros(3, np.int64)
    instances = Instances(boxes, scores, labels, logits[::2], letterbox)
    for options in (
        OutlineOptions(),
        OutlineOptions(tolerance_px=0, decimals=1, holes="rings"),
        OutlineOptions(max_points=7, decimals=2, closed=False),
        OutlineOptions(decimals=None, holes="rings"),
        OutlineOptions(mask_format="rle"),
    ):
        assert instances_to_objects(instances, ["a"], options)
    assert _compiled() == before
