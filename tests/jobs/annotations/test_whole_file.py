"""Faults that only a whole file shows are refused or reported by every command."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from jobs.annotations.datasets import AnnotationsError, read_annotations

SIDE = 400


def read(tmp_path, document):
    for image in document["images"]:
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / image["file_name"])
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    return read_annotations(path, tmp_path, tmp_path / "scratch", training=True)


def triangle(left, top, side=30):
    return [[left, top, left + side, top, left + side, top + side]]


def document(photos=4, each=2, names=("cat", "dog"), outline=lambda number: triangle(3 * number, 370 - 3 * number)):
    images = [{"id": photo, "file_name": f"{photo}.jpg"} for photo in range(1, photos + 1)]
    annotations = [
        {"id": n, "image_id": n // each + 1, "category_id": n % len(names) + 1, "segmentation": outline(n)}
        for n in range(photos * each)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("kind", [int, str])
def test_ids_that_are_off_by_one_are_refused(tmp_path, key, step, kind):
    """All but the last would be of the wrong photo or class."""
    shifted = document()
    for found in shifted["annotations"]:
        found[key] = kind(found[key] + step)
    with pytest.raises(AnnotationsError, match=f"each {key} of the annotations is one {'above' if step > 0 else 'below'} an id"):
        read(tmp_path, shifted)


def test_ids_of_photos_that_are_left_out_are_no_shift(tmp_path):
    """A part of a file: the annotations of other photos are left out."""
    part = document()
    part["images"] = part["images"][:2]
    assert "left out: 4 of no photo in the file (first: annotation 4, image_id 3)" in read(tmp_path, part).summary


def box(n):
    return [[14 * n, n, 14 * n + 9, n, 14 * n + 9, n + 20, 14 * n, n + 20]]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (document(20, outline=lambda n: triangle(n, 40 - n, 50)), "in the top left 22% of .* percentages, or of"),
        (document(20, outline=lambda n: triangle(3 * n, 40, 80)), "in the top left 49% of .* coordinates of a"),
        (document(2, outline=lambda n: triangle(n, 40 - n, 50)), None),
        (document(10, outline=box), "20 of 20 outlines are boxes"),
        (document(4, outline=box), None),
        (document(10, outline=lambda n: box(n) if n % 2 else triangle(14 * n, 40, 80)), None),
        (document(1, 101), r"1 photos with more than 100 objects \(1\.jpg has 101\)"),
        (document(1, 100), None),
        (document(names=("cat", "C at")), "capitals or spaces alone: 'cat' and 'C at'"),
        (document(names=("cat\n", "dog")), r"line breaks around their names, which answers will have: 'cat\\n'$"),
        (document(names=("cat", "dog", "cats")), None),
        (document() | {"annotations": document()["annotations"][:2]}, "3 photos without objects: are all photos annotated"),
        (document() | {"annotations": document()["annotations"][:6]}, "1 photos without objects$"),
    ],
    ids=[
        "percentages",
        "half the size",
        "few objects",
        "boxes",
        "few boxes",
        "some boxes",
        "dense",
        "not dense",
        "capitals",
        "a line break",
        "other classes",
        "mostly empty",
        "some empty",
    ],
)
def test_remarks(tmp_path, odd, told):
    remarks = read(tmp_path, odd).report.remarks
    assert len(remarks) == (told is not None)
    assert told is None or re.search(told, remarks[0])
