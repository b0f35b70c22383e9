"""COCO files with the oddities of ordinary tools: an error that names the place, or masks that lie on what is in the photos."""

from __future__ import annotations

import jobs.training.runner_config  # isort: skip  # noqa: F401  (before mmengine)

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from pycocotools import mask as coco_mask

from jobs.annotations.coco_objects import enlarged_box_iou
from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.training.data.augment import LoadImageOnce, LoadOutlines
from tests.support.drawn_outlines import OUTLINES, PHOTO_HW, coco_file, drawn, to_rle

HEIGHT, WIDTH = PHOTO_HW
RINGS = list(OUTLINES.values())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Photos with one object each, and their plain annotations."""
    folder = tmp_path_factory.mktemp("odd")
    return folder, coco_file(folder, RINGS)


def with_segmentation(change):
    """An oddity of polygons; objects with holes have none."""

    def apply(_document, entry, photo):
        rings = RINGS[photo["id"] - 1]
        if drawn(rings).sum() == sum(drawn([ring]).sum() for ring in rings):
            entry["segmentation"] = change([ring.tolist() for ring in rings])

    return apply


def flat(ring):
    return [value for point in ring for value in point]


def field(name, *values):
    return [lambda _d, entry, _p, value=value: entry.update({name: value}) for value in values]


def photo_field(name, *values):
    return [lambda _d, _e, photo, value=value: photo.update({name: value}) for value in values]


def as_run_lengths(compressed, size=None):
    def apply(_document, entry, photo):
        rle = to_rle(drawn(RINGS[photo["id"] - 1]), compressed=compressed)
        entry["segmentation"] = rle if size is None else rle | {"size": size}

    return apply


def of_half_the_size(_document, entry, photo):
    mask = drawn(RINGS[photo["id"] - 1])[::2, ::2]
    entry["segmentation"] = to_rle(np.ascontiguousarray(mask), compressed=True)


def under_two_ids(document, entry, photo):
    document["images"].append(photo | {"id": 1000 + photo["id"]})
    entry["image_id"] = 1000 + photo["id"]


ODDITIES = [
    with_segmentation(lambda rings: rings),  # [[x, y], ...] in a list
    with_segmentation(lambda rings: rings[0] if len(rings) == 1 else rings),
    with_segmentation(lambda rings: flat(rings[0]) if len(rings) == 1 else [flat(ring) for ring in rings]),
    with_segmentation(lambda rings: [[{"x": x, "y": y} for x, y in ring] for ring in rings]),
    with_segmentation(lambda rings: [[str(value) for value in flat(ring)] for ring in rings]),
    with_segmentation(lambda rings: [flat([*ring, ring[0]]) for ring in rings]),  # closed
    with_segmentation(lambda rings: [flat(ring[::-1]) for ring in rings]),
    with_segmentation(lambda rings: [flat([point for point in ring for _ in range(2)]) for ring in rings]),
    with_segmentation(lambda rings: [*map(flat, rings), flat(rings[0])]),  # a ring twice
    with_segmentation(lambda rings: [*map(flat, rings), [5.0, 5.0], []]),
    with_segmentation(lambda rings: [flat(ring)[:-1] for ring in rings]),  # half a point
    with_segmentation(
        lambda rings: [[value / side for value, side in zip(flat(r), [WIDTH, HEIGHT] * len(r), strict=True)] for r in rings]
    ),
    with_segmentation(lambda rings: [[value + 1000 for value in flat(ring)] for ring in rings]),
    with_segmentation(lambda rings: [[value * 1e9 for value in flat(ring)] for ring in rings]),
    with_segmentation(lambda rings: [flat(ring[:2]) for ring in rings]),
    as_run_lengths(compressed=True),
    as_run_lengths(compressed=False),
    as_run_lengths(compressed=True, size=[WIDTH, HEIGHT]),
    as_run_lengths(compressed=False, size=[WIDTH, HEIGHT]),
    as_run_lengths(compressed=True, size=None),
    of_half_the_size,
    under_two_ids,
    *field(
        "segmentation",
        None,
        [],
        "polygon",
        {},
        {"size": [HEIGHT, WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": "~"},
        [[float("nan")] * 6],
    ),
    *field("area", 0, None, -1, [7000.0], "7000", "large", float("nan"), 1e-9),
    *field(
        "bbox", None, [], [0, 0, 0, 0], [1, 2], [20, 20, float("nan"), 5], ["1", "2", "150", "140"], [90, 70, 0.5, 0.5], "box", {}
    ),
    *field("iscrowd", "false", False, "0", None, 0.0, "perhaps", [0]),
    *field("ignore", 0, False, None),
    *field("category_id", "1", 1.0, 7, None, [1]),
    *field("id", None, "a", 1),
    *photo_field("width", "200", "200px", None, 0, 200.0, HEIGHT, "wide", [200]),
    *photo_field("height", "150", None, WIDTH, -5),
    lambda _d, entry, _p: entry.update({"image_id": str(entry["image_id"])}),
    lambda _d, entry, _p: entry.update({"image_id": 99}),
    lambda _d, _e, photo: photo.update({"file_name": "..\\..\\up\\" + photo["file_name"]}),
    lambda _d, _e, photo: photo.update({"file_name": "data/2024/" + photo["file_name"]}),
    lambda _d, _e, photo: photo.update({"file_name": None}),
    lambda document, _e, _p: document["categories"].insert(0, {"id": 0, "name": "blob", "supercategory": "none"}),
    lambda document, _e, _p: document["categories"].insert(0, {"id": 0, "name": "root", "supercategory": "none"}),
]


def seen_by_training(annotations):
    """Masks of the objects by photo, from the data set that mmdet builds."""
    dataset = CocoDataset(
        ann_file=str(annotations.coco_json),
        data_prefix={"img": f"{annotations.images}/"},
        metainfo={"classes": annotations.classes},
    )
    load = LoadOutlines()
    for index in range(len(dataset)):
        entry = load(LoadImageOnce()(dataset.get_data_info(index)))
        kept = ~entry["gt_ignore_flags"]
        yield Path(entry["img_path"]).stem, entry["gt_masks"][kept].to_ndarray(), entry["gt_bboxes"].numpy()[kept]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(ODDITIES), st.integers(0, len(RINGS) - 1)), min_size=1, max_size=4), st.booleans())
def test_an_error_with_its_place_or_masks_on_the_objects(plain, odd, everywhere):
    """One oddity or several, of one photo or of all."""
    folder, document = plain
    document = copy.deepcopy(document)
    objects = len(document["annotations"])
    for apply, place in odd:
        for number in range(objects) if everywhere else [place]:
            apply(document, document["annotations"][number], document["images"][number])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coco.json"
        path.write_text(json.dumps(document))
        try:
            annotations = read_annotations(path, folder / "photos", Path(scratch), training=True)
        except AnnotationsError as error:
            assert "coco.json" in str(error)
            assert any(word in str(error) for word in ("annotation", "photo", "category", "categories")), error
            return
        seen = list(seen_by_training(annotations))
    report = annotations.report
    assert sum(len(masks) for _, masks, _ in seen) == report.objects
    lost = sum(noted.count for reason, noted in report.left_out.items() if not reason.startswith("polygons"))
    short = report.left_out.get("polygons of fewer than three points")
    assert report.objects + lost <= objects <= report.objects + lost + (short.count if short else 0)
    for name, masks, boxes in seen:
        truth = drawn(RINGS[int(name) - 1])
        for mask, box in zip(masks, boxes, strict=True):
            assert np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth) > 0.9
            around = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(truth))).tolist()
            assert enlarged_box_iou([*box[:2], *(box[2:] - box[:2])], around) > 0.45
