"""Crossing, touching and misplaced rings are found; any other outline is valid for GEOS."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.crossings import find_crossings, find_misplaced, is_tangled
from pipeline.masks.outline import Outline, to_shapely

SQUARE = [(0, 0), (8, 0), (8, 8), (0, 8)]


def _outline(*rings: list[tuple[float, float]], parents: tuple[int, ...] = ()) -> Outline:
    points = np.array([point for ring in rings for point in ring], np.float64)
    return Outline(points, np.cumsum([0, *map(len, rings)]), np.array(parents or [-1] * len(rings), np.int64))


@pytest.mark.parametrize(
    ("outline", "tangled"),
    [
        (_outline(SQUARE), False),
        (_outline([(0, 0), (8, 8), (8, 0), (0, 8)]), True),
        (_outline([(0, 0), (8, 0), (8, 8), (4, 0), (0, 8)]), True),
        (_outline([(0, 0), (8, 0), (3, 0), (3, 8)]), True),
        (_outline([(0, 0), (4, 0), (4, 4), (8, 4), (4, 4), (0, 4)]), True),
        (_outline(SQUARE, [(8, 8), (12, 8), (12, 12)]), True),
        (_outline(SQUARE, [(9, 8), (12, 8), (12, 12)]), False),
        (_outline(SQUARE, [(1, 1), (2, 1), (2, 2)]), True),
        (_outline(SQUARE, [(1, 1), (2, 1), (2, 2)], parents=(-1, 0)), False),
        (_outline(SQUARE, [(11, 1), (12, 1), (12, 2)], parents=(-1, 0)), True),
        (_outline(SQUARE, [(20, 0), (28, 0), (24, 8)], [(23, 1), (25, 1), (24, 2)], parents=(-1, -1, 0)), True),
    ],
    ids="square bow-tie corner-on-edge folded-back spike corners-meet apart nested hole hole-outside hole-of-another".split(),
)
def test_tangled(outline, tangled):
    """Crossing, touching and lying in the wrong ring, each for itself."""
    assert is_tangled(outline) == tangled


def test_the_segments_are_named():
    """Those that cross, and no others."""
    crossing = find_crossings(_outline([(0, 0), (8, 8), (8, 0), (0, 8)], [(20, 0), (28, 0), (24, 8)]))
    assert crossing.tolist() == [True, False, True, False, False, False, False]


def test_the_rings_are_named():
    """The one that lies wrong, and the one in which it does or should."""
    inner = [(1, 1), (2, 1), (2, 2)]
    assert find_misplaced(_outline(SQUARE, inner)) == [(1, 0)]
    assert find_misplaced(_outline(inner, SQUARE)) == [(0, 1)]


@st.composite
def small_outlines(draw: st.DrawFn) -> Outline:
    """Up to four rings on a coarse grid or off it, holes among them: most cross or touch, some do not."""
    on_grid = draw(st.booleans())
    coordinate = st.integers(0, 9) if on_grid else st.floats(0, 9, allow_subnormal=False)
    rings, parents = [], []
    for ring in range(draw(st.integers(1, 4))):
        left, top, size = draw(st.integers(0, 20)), draw(st.integers(0, 3)), draw(st.sampled_from([0.1, 0.5, 2.0]))
        points = draw(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=6, unique=True))
        rings.append([(left + x * size, top + y * size) for x, y in points])
        parents.append(draw(st.integers(-1, ring - 1)))
    return _outline(*rings, parents=tuple(parents))


@settings(max_examples=400)
@given(small_outlines())
def test_untangled_is_valid(outline):
    """GEOS finds nothing wrong with it, and each ring lies in those that are around it."""
    if not is_tangled(outline):
        assert to_shapely(outline).is_valid


@settings(max_examples=200)
@given(small_outlines())
def test_valid_is_untangled_or_touches(outline):
    """What GEOS finds valid is called tangled only where segments touch."""
    geometry = to_shapely(outline)
    if geometry.is_valid and is_tangled(outline):
        rings = [ring for part in geometry.geoms for ring in (part.exterior, *part.interiors)]
        apart = [shapely.distance(a, b) for i, a in enumerate(rings) for b in rings[:i]]
        assert min(apart, default=0) < 1e-9 or len(find_misplaced(outline))
