"""pipeline.inference.selection against the same steps, written down plainly in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference.postprocess import load_loops
from pipeline.inference.selection import CANDIDATES_PER_LEVEL, NMS_IOU, Positions, select

SIZE = 64
LEVELS = np.repeat([0, 1, 2], [64, 16, 4])
POINTS = np.concatenate(
    [[(x * step, y * step) for y in range(SIZE // step) for x in range(SIZE // step)] for step in (8, 16, 32)]
).astype(np.float32)
PLACES = Positions(POINTS, LEVELS)


def outputs(seed: int, classes: int, spread: float, places: Positions = PLACES) -> tuple[np.ndarray, np.ndarray]:
    random, count = np.random.default_rng(seed), len(places.points)
    logits = random.normal(0, spread, (count, classes)).astype(np.float32)
    return logits, random.uniform(0, 40, (count, 4)).astype(np.float32)


def iou(one: np.ndarray, other: np.ndarray) -> np.float32:
    width, height = (max(min(one[k + 2], other[k + 2]) - max(one[k], other[k]), np.float32(0)) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def has_area(box: np.ndarray) -> bool:
    return bool((box[2:] > box[:2]).all())


def expected(logits, distances, thresholds, scaled_wh, max_detections, places=PLACES):
    """Rows (position, label, box) by the definition."""
    scores = 1 / (1 + np.exp(-logits))
    found = sorted(zip(*np.nonzero(scores > thresholds), strict=True), key=lambda at: -scores[at])
    found = [
        at
        for place, at in enumerate(found)
        if sum(places.levels[other[0]] == places.levels[at[0]] for other in found[:place]) < CANDIDATES_PER_LEVEL
    ]
    kept, rows = [], []
    for position, label in found:
        point, reach = places.points[position], distances[position]
        box = np.concatenate([point - reach[:2], point + reach[2:]]).clip(0, SIZE)
        if has_area(box) and all(own != label or iou(other, box) <= np.float32(NMS_IOU) for own, other in kept):
            kept.append((label, box))
            inside = np.minimum(box, np.float32(scaled_wh * 2))
            if has_area(inside):
                rows.append((position, label, inside))
    return rows[:max_detections]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 4),
    spread=st.sampled_from([0.5, 3.0]),
    thresholds=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]), min_size=4, max_size=4),
    scaled_wh=st.sampled_from([(SIZE, SIZE), (SIZE, 20), (7, SIZE)]),
    max_detections=st.sampled_from([1, 7, 300]),
    step=st.sampled_from([1e-3, 8.0]),
)
def test_it_selects_what_the_definition_says(seed, classes, spread, thresholds, scaled_wh, max_detections, step):
    """Also with boxes on a coarse grid, of which many have exactly the IoU at which suppression begins."""
    logits, distances = outputs(seed, classes, spread)
    distances = np.float32(step) * np.rint(distances / np.float32(step))
    limits = np.float32(thresholds[:classes])
    selected = select(logits, distances, limits, PLACES, SIZE, scaled_wh, max_detections)
    rows = expected(logits, distances, limits, scaled_wh, max_detections)
    assert [(position, label) for position, label, _ in rows] == list(zip(selected.positions, selected.labels, strict=True))
    np.testing.assert_array_equal(selected.boxes, np.reshape([box for *_, box in rows], (-1, 4)))
    np.testing.assert_allclose(selected.scores, 1 / (1 + np.exp(-logits[selected.positions, selected.labels])), rtol=1e-6)


@pytest.mark.parametrize("steps", [7, 1250], ids=["ties", "no ties"])
def test_a_level_has_a_thousand_candidates_at_most(steps):
    """Boxes of one pixel do not suppress each other: what is left are the best 1000 of the first level, and all of the second."""
    first, second = CANDIDATES_PER_LEVEL + 200, 50
    points = np.stack([np.arange(first + second) % 40, np.arange(first + second) // 40], 1).astype(np.float32)
    places = Positions(points, np.repeat([0, 1], [first, second]))
    logits = np.random.default_rng(0).permutation(np.linspace(1, 3, steps, dtype=np.float32)[np.arange(len(points)) % steps])[
        :, None
    ]
    reach = np.tile(np.float32([0, 0, 1, 1]), (len(points), 1))
    selected = select(logits, reach, np.float32([0.5]), places, SIZE, (SIZE, SIZE), 5000)
    best = np.argsort(-logits[:first, 0], kind="stable")[:CANDIDATES_PER_LEVEL]
    assert set(selected.positions) == {*best, *range(first, first + second)}
    assert (np.diff(selected.scores) <= 0).all()


@pytest.mark.parametrize("broken", ["logits", "distances"])
def test_nan_takes_its_position_out(broken):
    """Also where it is the logit of another label."""
    logits, distances = outputs(1, 2, 3.0)
    logits[:, 1] = -9
    position = select(logits, distances, np.float32([0.3, 0.3]), PLACES, SIZE, (SIZE, SIZE), 300).positions[0]
    (logits if broken == "logits" else distances)[position, 1] = np.nan
    selected = select(logits, distances, np.float32([0.3, 0.3]), PLACES, SIZE, (SIZE, SIZE), 300)
    assert position not in selected.positions
    assert np.isfinite(selected.boxes).all()
    assert len(selected.positions) > 0


def test_nothing_above_the_thresholds():
    logits, distances = outputs(2, 2, 1.0)
    selected = select(logits, distances, np.float32([1, 1]), PLACES, SIZE, (SIZE, SIZE), 300)
    assert [len(part) for part in selected] == [0, 0, 0, 0]
    assert selected.boxes.shape == (0, 4)


def test_no_image_waits_for_a_compilation():
    """What `load_loops` calls serves every call."""
    load_loops()
    logits, distances = outputs(3, 2, 1.0)
    for threshold in (1.0, 0.3):
        select(logits, distances, np.float32([threshold, threshold]), PLACES, SIZE, (SIZE, 20), 7)
    assert len(select.signatures) == 1
