"""Photos are decoded before a training; copies and odd orientations are reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import AnnotationsError, Report
from jobs.training.data.photo_check import check_photos, copies_within


@pytest.fixture
def annotated(tmp_path):
    """Makes a set of photos, each of a number: the same number is the same picture."""

    def make(name, **photos):
        folder = tmp_path / name
        folder.mkdir()
        for file, number in photos.items():
            noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(noise).resize((64 if file.startswith("small") else 200,) * 2).save(folder / f"{file}.png")
        path = folder / "a.json"
        path.write_text(json.dumps({"images": [{"file_name": f"{file}.png"} for file in photos]}))
        return Annotations(path, folder, ("cat",), len(photos), Report("a.json"))

    return make


def test_photos_in_both_sets_are_found(annotated):
    """Under another name, and in another size."""
    train, val = annotated("train", a=1, b=2, c=3), annotated("val", d=4, small_e=2)
    (remark,) = check_photos(train, val, None)
    assert remark.startswith("Warning: 1 validation photos are also training photos, or copies of them")
    assert remark.endswith(f"first: {val.images / 'small_e.png'} is {train.images / 'b.png'}")
    assert check_photos(train, None, None) == []


def test_copies_within_a_set(annotated):
    copies, (remark,) = copies_within(annotated("all", a=1, b=2, small_c=1), None)
    assert copies == {"small_c.png": "a.png"}
    assert remark == "1 photos are copies of others and stay on one side, first: small_c.png of a.png"


def test_photos_whose_size_does_not_show_their_orientation_are_noted(annotated):
    """They may be annotated as stored."""
    part = annotated("train", a=1, b=2)
    photo = Image.open(part.images / "b.png")
    photo.getexif()[0x0112] = 3
    photo.save(part.images / "b.png", exif=photo.getexif())
    for remarks in (check_photos(part, None, None), copies_within(part, None)[1]):
        assert [f"Look at {part.images / 'b.png'}: were the outlines" in remark for remark in remarks] == [True]


def test_photos_that_cannot_be_decoded_are_named(annotated):
    """Before the training."""
    part = annotated("train", a=1, b=2, c=3)
    (part.images / "b.png").write_bytes((part.images / "b.png").read_bytes()[:100])
    for check in (lambda: check_photos(part, None, None), lambda: copies_within(part, None)):
        with pytest.raises(AnnotationsError, match=r"1 of 3 photos cannot be decoded, first: \S*b\.png: not .* Replace them"):
            check()
    (part.images / "b.png").unlink()
    with pytest.raises(AnnotationsError, match="1 of 3 photos are missing"):
        copies_within(part, None)
