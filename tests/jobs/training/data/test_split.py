"""Photos to measure on, out of those to train on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.annotations.report import AnnotationsError
from jobs.training.data.split import split


def document(names):
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": 2 * number + k, "image_id": number} for number in range(len(names)) for k in range(2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


@given(st.integers(2, 60), st.floats(0.05, 0.5))
def test_each_photo_is_on_one_side_with_its_objects(count, share):
    coco = document([f"{number}.jpg" for number in range(count)])
    parts = split(coco, share, None)
    ids = [[photo["id"] for photo in part["images"]] for part in parts]
    assert sorted(ids[0] + ids[1]) == list(range(count))
    assert abs(len(ids[1]) - max(share * count, 1)) <= 0.5
    for part, own in zip(parts, ids, strict=True):
        assert sorted({found["image_id"] for found in part["annotations"]}) == sorted(own)
        assert len(part["annotations"]) == 2 * len(own)
        assert part["categories"] == coco["categories"]
    assert parts == split(coco, share, None)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.floats(0.02, 0.5))
def test_groups_stay_whole(sizes, share):
    """The photos of one building are trained on or measured on. A large one is not measured on because it happens to come first."""
    names = [f"house{group}_{number}.jpg" for group, size in enumerate(sizes) for number in range(size)]
    train, val = split(document(names), share, "^(house[0-9]+)_")
    assert abs(len(val["images"]) - share * len(names)) <= max(max(sizes) / 2, min(sizes))
    houses = [{photo["file_name"].split("_")[0] for photo in part["images"]} for part in (train, val)]
    assert not houses[0] & houses[1]
    assert houses[0]
    assert houses[1]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "not a regular expression"),
        ("jpg", "all 3 photos are one group"),
        ("(.*)/", "no photo's file name matches .first: a.jpg"),
    ],
)
def test_patterns_that_do_not_do(pattern, said):
    with pytest.raises(AnnotationsError, match=said):
        split(document(["a.jpg", "b.jpg", "c.jpg"]), 0.5, pattern)


def test_copies_stay_on_one_side():
    """And Roboflow's augmented photos of one photo, and its tiles."""
    names = [f"{number}.jpg" for number in range(12)]
    for _ in range(2):
        train, val = split(document(names), 0.5, None, {"3.jpg": "0.jpg", "7.jpg": "3.jpg", "9.jpg": "1.jpg"})
        for group in ({"0.jpg", "3.jpg", "7.jpg"}, {"1.jpg", "9.jpg"}):
            assert sum(bool(group & {photo["file_name"] for photo in part["images"]}) for part in (train, val)) == 1
    for name in ("{}_jpg.rf.{:032x}.jpg", "{}_0_{}_320x240.jpg", "{}_jpg.rf.0a_0_{}_320x240.jpg"):
        parts_of_photos = [name.format(photo, number) for photo in range(6) for number in range(3)]
        sides = [{photo["file_name"][0] for photo in part["images"]} for part in split(document(parts_of_photos), 0.5, None)]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == set("012345")


def test_one_photo_cannot_be_split():
    with pytest.raises(AnnotationsError, match=r"^--val-share: there is 1 photo, so none is left to train on"):
        split(document(["a.jpg"]), 0.5, None)
