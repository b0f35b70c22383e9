"""Photos to measure on, out of those to train on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.annotations.report import AnnotationsError
from jobs.training.data.split import shared_photos, split


def document(names):
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": 2 * number + k, "image_id": number} for number in range(len(names)) for k in range(2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


@given(st.integers(2, 60), st.floats(0.05, 0.5), st.integers(0, 5))
def test_each_photo_is_on_one_side_with_its_objects(count, share, seed):
    coco = document([f"{number}.jpg" for number in range(count)])
    parts = split(coco, share, None, seed)
    ids = [[photo["id"] for photo in part["images"]] for part in parts]
    assert sorted(ids[0] + ids[1]) == list(range(count))
    assert abs(len(ids[1]) - share * count) <= 1
    for part, own in zip(parts, ids, strict=True):
        assert sorted({found["image_id"] for found in part["annotations"]}) == sorted(own)
        assert len(part["annotations"]) == 2 * len(own)
        assert part["categories"] == coco["categories"]
    assert parts == split(coco, share, None, seed)


@given(st.integers(2, 8), st.integers(0, 5))
def test_groups_stay_whole(groups, seed):
    """The photos of one building are trained on or measured on."""
    names = [f"house{group}_{number}.jpg" for group in range(groups) for number in range(group + 1)]
    train, val = split(document(names), 0.3, "^(house[0-9]+)_", seed)
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
        split(document(["a.jpg", "b.jpg", "c.jpg"]), 0.5, pattern, 0)


def test_the_same_photo_under_another_name_is_found(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"six")):
        (tmp_path / name).write_bytes(content)
    assert shared_photos([tmp_path / "a", tmp_path / "b"], [tmp_path / "c", tmp_path / "d"]) == [tmp_path / "c"]


def test_one_photo_cannot_be_split():
    with pytest.raises(AnnotationsError, match=r"^--val-share: there is 1 photo, so none is left to train on"):
        split(document(["a.jpg"]), 0.5, None, 0)
