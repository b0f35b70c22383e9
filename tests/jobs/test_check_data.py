"""jobs.check_data reports odd annotations in the terminal and on a page."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jobs import check_data
from jobs.annotations.datasets import read_annotations
from jobs.check_data import odd_cases
from jobs.sheets import sheets_of_annotations


def check(tmp_path, annotations, photos, *more):
    return check_data.main([str(annotations), "--images", str(photos), "--output", str(tmp_path / "new" / "check.html"), *more])


class Page(HTMLParser):
    """Fails on nothing; collects what the tests look for."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note sources and links, and what is open."""
        given = dict(attrs)
        self.images += [given["src"]] if tag == "img" else []
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.open += [tag] if tag not in ("img", "meta") else []

    def handle_endtag(self, tag):
        """Tags close in order."""
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["coco.json", "azureml.jsonl"])
def test_counts_and_a_page_that_needs_nothing(tiny_coco, tmp_path, capsys, name):
    """Classes and sizes in the terminal, pictures in one file."""
    assert check(tmp_path, tiny_coco / name, tiny_coco / "photos", "--pictures", "3") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: 6 photos, 5 objects\n  1 photos without objects\nphotos: 128 x 96 px (6 photos)\n")
    assert re.search(r"egg +3 in 3 photos, median side \d+ px\n  ball +2 in 2 photos", said)
    page = Page((tmp_path / "new" / "check.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.images) == 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)


def test_photos_that_cannot_be_decoded_are_named(tiny_coco, tmp_path, capsys):
    """All of them; also duplicate files, and photos without annotations."""
    shutil.copytree(tiny_coco / "photos", tmp_path / "photos")
    whole = (tmp_path / "photos" / "3.png").read_bytes()
    for name in ("3.png", "4.png"):
        (tmp_path / "photos" / name).write_bytes(whole[:200])
    for copy in ("2.png", "5.png", "nobody's <b>.png"):
        shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / copy)
    assert check(tmp_path, tiny_coco / "coco.json", tmp_path / "photos") == 1
    said = capsys.readouterr().out
    assert re.findall(r"cannot be decoded: \S*(\d\.png): not a readable photo", said) == ["3.png", "4.png"]
    assert "2 photos that are copies of others, also in another size or format (first: 1.png, 2.png, 5.png)" in said
    assert "1 photos in the folder that the annotations do not name (first: nobody's <b>.png)" in said
    assert "nobody's <b>" not in (tmp_path / "new" / "check.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("orientation", "size"), [(3, (128, 96)), (2, (128, 96)), (6, (96, 128)), (6, (96, 96))], ids=str)
def test_photos_whose_size_does_not_show_their_orientation(tmp_path, capsys, orientation, size):
    """Annotated as stored, they would have outlines in the wrong place."""
    stored = Image.effect_noise(size, 90)
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    document = document_of({"id": 1, "segmentation": [[9, 9, 50, 9, 50, 60]]})
    document["images"] = [{"id": 1, "file_name": "a.png"}]
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert check(tmp_path, tmp_path / "a.json", tmp_path) == 0
    assert ("1 photos rotated or mirrored by their EXIF orientation" in capsys.readouterr().out) == (size != (96, 128))


def test_photos_without_annotations_are_of_every_format_that_is_read(tiny_coco, tmp_path, capsys):
    """But not what macOS writes beside photos."""
    shutil.copytree(tiny_coco / "photos", tmp_path / "photos")
    for name in ("more.jpe", "._1.png", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    assert check(tmp_path, tiny_coco / "coco.json", tmp_path / "photos") == 0
    assert "1 photos in the folder that the annotations do not name (first: more.jpe)" in capsys.readouterr().out


def test_refused_annotations_are_exit_status_2(tiny_coco, tmp_path, capsys):
    """With the message of jobs.finetune; with --strict also if anything is left out."""
    document = json.loads((tiny_coco / "coco.json").read_text())
    document["annotations"][0]["segmentation"] = []
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert check(tmp_path, tmp_path / "a.json", tiny_coco / "photos") == 0
    assert (
        "left out: 1 without an outline: nothing is learned or counted in their boxes (first: annotation 1"
        in capsys.readouterr().out
    )
    assert check(tmp_path, tmp_path / "a.json", tiny_coco / "photos", "--strict") == 2
    assert "--strict allows none" in capsys.readouterr().err
    document["annotations"] = document["annotations"][:1]
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert check(tmp_path, tmp_path / "a.json", tiny_coco / "photos") == 2
    assert "there are no objects to train or measure on" in capsys.readouterr().err


def document_of(*objects, categories=("cat",), size=(1000, 800)):
    """A normalised document of one photo."""
    defaults = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400.0}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "annotations": [defaults | {"segmentation": [[0, 0, 1, 0, 1, 1]]} | one for one in objects],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
    }


ODD = {
    "less than 4 px wide or high at 640 px": ([{"bbox": [1, 1, 200, 6]}, {"bbox": [1, 1, 200, 7]}], 1),
    "cover more than 95% of their photo": ([{"bbox": [0, 0, 1000, 800], "area": 790_000.0}], 1),
    "outlines that are their box": ([{"bbox": [1, 1, 20, 20], "segmentation": [[1, 1, 21, 1, 21, 21, 1, 21]]}], 1),
    "classes with fewer than 10 objects": ([{"bbox": [900, 700, 20, 20]}], 1),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_cases(what):
    objects, count = ODD[what]
    found = {odd.what: odd for odd in odd_cases(document_of(*objects), 640)}
    (name,) = [name for name in found if what in name]
    assert found[name].count == count


def test_ordinary_objects_are_not_odd():
    """Crowds are no objects."""
    objects = [{"bbox": [9 * n, 700 - 9 * n, 40 + n, 40]} for n in range(1, 100)]
    assert odd_cases(document_of(*objects, {"bbox": [0, 0, 1000, 800], "area": 800_000.0, "iscrowd": 1}), 640) == []


def test_holes_are_drawn(tmp_path):
    """As training sees them, and as pictures of the same file do."""
    Image.new("RGB", (100, 100), (90, 90, 90)).save(tmp_path / "a.png")
    ring = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9], [0.3, 0.3, 0.7, 0.3, 0.7, 0.7, 0.3, 0.7]]
    (tmp_path / "a.jsonl").write_text(json.dumps({"image_url": "a.png", "label": [{"label": "ring", "polygon": ring}]}))
    for training in (True, False):
        annotations = read_annotations(tmp_path / "a.jsonl", tmp_path, tmp_path / "scratch", training=training)
        (sheet,) = sheets_of_annotations(annotations, even_odd=training)
        drawn = np.asarray(sheet.draw(100))
        assert tuple(drawn[55, 55]) == (90, 90, 90)
        assert tuple(drawn[80, 55]) != (90, 90, 90)
