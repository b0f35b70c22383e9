"""Instances to the contract's JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.encode import (
    instances_to_json_objects,
    instances_to_objects,
    join_json_objects,
    objects_from_dict,
    objects_to_dict,
    objects_to_json,
    split_instances,
)
from pipeline.types import Instances, OutlineOptions, SegmentedObject
from tests.support.mask_examples import decode_rle, ellipse_logits, letterbox_of, rough_masks

VGA = letterbox_of(480, 640)
RING_MASK = ellipse_logits(VGA, (40, 30, 20, 20), (40, 30, -8, 8))
NO_MASK = np.full(VGA.mask_grid_hw, -1, np.float16)


def _instances(*masks: np.ndarray, box: tuple[float, ...] = (160, 80, 480, 400)) -> Instances:
    count = len(masks)
    logits = np.stack(masks) if masks else np.zeros((0, *VGA.mask_grid_hw), np.float16)
    scores = np.linspace(0.98, 0.5, count, dtype=np.float32)
    return Instances(np.tile(np.float32(box), (count, 1)), scores, np.arange(count) % 2, logits, VGA)


def test_golden_json():
    """The exact bytes of the contract."""
    item = SegmentedObject((0.1, 0.2, 0.8, 0.7), "carton", 0.98, [[0.1, 0.2, 0.8, 0.2, 0.8, 0.7]])
    assert objects_to_json([item]) == (
        b'{"boxes":[{"box":{"topX":0.1,"topY":0.2,"bottomX":0.8,"bottomY":0.7},"label":"carton","score":0.98,'
        b'"polygon":[[0.1,0.2,0.8,0.2,0.8,0.7]]}]}'
    )


def test_nothing_found():
    """No object is an empty list, in every format."""
    for mask_format in ("polygon", "rle"):
        assert (
            objects_to_json(instances_to_objects(_instances(), ["a"], OutlineOptions(mask_format=mask_format))) == b'{"boxes":[]}'
        )


def test_full_image_rectangle():
    """A mask over the whole image is its four corners in fractions; float32 scores keep their short form."""
    full = np.full(VGA.mask_grid_hw, 3, np.float16)
    (item,) = instances_to_objects(_instances(full), ["cat"], OutlineOptions())
    corners = list(zip(item.polygon[0][::2], item.polygon[0][1::2], strict=True))
    assert sorted(corners[:-1]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert corners[-1] == corners[0]
    assert (item.box, item.label, item.score) == ((0.25, 0.16667, 0.75, 0.83333), "cat", 0.98)


@pytest.mark.parametrize("mask_format", ["polygon", "rle"])
def test_object_without_a_mask_is_dropped_and_order_kept(mask_format):
    """As Azure does; the others keep their own labels and scores."""
    found = instances_to_objects(_instances(RING_MASK, NO_MASK, RING_MASK), ["a", "b"], OutlineOptions(mask_format=mask_format))
    assert [(item.label, item.score) for item in found] == [("a", 0.98), ("a", 0.5)]


def test_holes_only_when_asked_for():
    """`drop` gives no key, `rings` gives the rings of the holes beside the polygon."""
    (dropped,) = objects_to_dict(instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions()))["boxes"]
    (kept,) = objects_to_dict(instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions(holes="rings")))["boxes"]
    assert list(dropped) == ["box", "label", "score", "polygon"]
    assert kept["polygon"] == dropped["polygon"]
    assert len(kept["holes"]) == 1


@pytest.mark.parametrize("options", [OutlineOptions(), OutlineOptions(holes="rings"), OutlineOptions(mask_format="rle")], ids=str)
def test_objects_round_trip_through_dicts(options):
    """A client that parses an answer gets the objects that were sent, in every format."""
    objects = instances_to_objects(_instances(RING_MASK, RING_MASK), ["a", "b"], options)
    assert objects_from_dict(json.loads(objects_to_json(objects))) == objects


@settings(max_examples=50)
@given(
    rough_masks(),
    st.sampled_from([1, 2, 4, 5, 6, 17, None]),
    st.sampled_from(["drop", "rings"]),
    st.sampled_from(["polygon", "rle"]),
    st.booleans(),
)
def test_rows_are_the_json_of_the_objects(example, decimals, holes, mask_format, closed):
    """Byte by byte, also for masks that have to be repaired after rounding, and for those of which nothing is left."""
    logits, letterbox = example
    masks = np.stack([logits, np.full_like(logits, -1), -logits])
    instances = Instances(np.tile(np.float32([0, 0, 9, 9]), (3, 1)), np.ones(3, np.float32), np.arange(3), masks, letterbox)
    options = OutlineOptions(decimals=decimals, holes=holes, mask_format=mask_format, closed=closed)
    rows = instances_to_json_objects(instances, ["a", "b", 'c"'], options)
    assert join_json_objects(rows) == objects_to_json(instances_to_objects(instances, ["a", "b", 'c"'], options))


def test_rle_stands_beside_an_empty_polygon():
    """Clients that loop over polygons keep working; pycocotools reads the rest."""
    (row,) = json.loads(objects_to_json(instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions(mask_format="rle"))))[
        "boxes"
    ]
    assert row["polygon"] == []
    assert decode_rle(row["rle"]).shape == (480, 640)


@pytest.mark.parametrize("decimals", [2, 4, None])
def test_decimals(decimals):
    """Coordinates carry the digits asked for, stay in 0..1 and never repeat a point."""
    options = OutlineOptions(decimals=decimals, tolerance_px=0)
    (item,) = instances_to_objects(_instances(RING_MASK, box=(-3, -3, 999, 999)), ["a"], options)
    assert item.box == (0, 0, 1, 1)
    points = np.reshape(item.polygon[0], (-1, 2))
    assert (points == (points if decimals is None else np.round(points, decimals))).all()
    assert (points[1:] != points[:-1]).any(axis=1).all()
    assert (points[1:-1] != points[0]).any(axis=1).all()


def test_closed_rings_repeat_their_first_point():
    """By default, as AzureML's do, holes too; open ones are the same without it."""
    closed, opened = (
        instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions(holes="rings", closed=closed))[0]
        for closed in (True, False)
    )
    for ring, shorter in zip([*closed.polygon, *closed.holes], [*opened.polygon, *opened.holes], strict=True):
        assert ring == [*shorter, *shorter[:2]]
        assert shorter[-2:] != shorter[:2]


def test_budget_counts_what_is_sent():
    """`max_points` bounds all rings of an object together."""
    (item,) = instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions(max_points=12, holes="rings", tolerance_px=0))
    assert sum(len(ring) - 2 for ring in [*item.polygon, *item.holes]) <= 24  # without the repeated first points


def test_dropped_holes_do_not_use_the_budget():
    """When holes are not sent, they are not paid for."""
    sent, dropped = (
        instances_to_objects(_instances(RING_MASK), ["a"], OutlineOptions(tolerance_px=0.2, max_points=40, holes=holes))[0]
        for holes in ("rings", "drop")
    )
    assert len(sent.polygon[0]) < len(dropped.polygon[0]) <= 82


def test_nothing_lies_in_a_dropped_hole():
    """An island in a hole is covered by the ring around it; a client that adds up areas would count it twice."""
    target = ellipse_logits(VGA, (40, 30, 24, 24), (40, 30, -16, 16))
    target = np.maximum(target, ellipse_logits(VGA, (40, 30, 6, 6)))
    (sent,) = instances_to_objects(_instances(target), ["a"], OutlineOptions(holes="rings"))
    (dropped,) = instances_to_objects(_instances(target), ["a"], OutlineOptions())
    assert (len(sent.polygon), len(sent.holes)) == (2, 1)
    assert dropped.polygon == sent.polygon[:1]


@pytest.mark.parametrize(("count", "threads", "parts"), [(0, 2, 1), (20, 4, 1), (40, 2, 2), (70, 8, 4), (100, 1, 4)])
def test_parts_of_an_image_give_what_the_whole_gives(count, threads, parts):
    """Only an image with many instances is cut, and nothing is lost or moved."""
    whole = _instances(*[RING_MASK] * count)
    cut = split_instances(whole, threads)
    assert len(cut) == parts
    expected = instances_to_objects(whole, ["a", "b"], OutlineOptions())
    assert len(expected) == count
    assert [item for part in cut for item in instances_to_objects(part, ["a", "b"], OutlineOptions())] == expected
