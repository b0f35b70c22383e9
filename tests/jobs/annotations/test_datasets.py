"""COCO JSON and AzureML JSONL come out as the same annotations."""

import gzip
import json
from pathlib import Path

import pytest

from jobs.annotations.azureml_file import azureml_to_coco
from jobs.annotations.coco_file import normalise
from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.annotations.report import Report
from tests.support.mask_examples import decode_rle


def test_coco_is_taken_as_it_is(tiny_coco, tmp_path):
    found = read_annotations(tiny_coco / "coco.json", tiny_coco / "photos", tmp_path)
    assert found.document() == json.loads((tiny_coco / "coco.json").read_text())
    assert found.classes == ("ball", "egg")
    assert found.photo_count == 6


def test_azureml_equals_coco(tiny_coco, tmp_path):
    """The same objects written in AzureML's format give the same pixels, boxes, areas and labels."""
    found = read_annotations(tiny_coco / "azureml.jsonl", tiny_coco / "photos", tmp_path)
    converted, original = found.document(), json.loads((tiny_coco / "coco.json").read_text())
    assert converted["images"] == original["images"]
    assert converted["categories"] == original["categories"]
    for mine, theirs in zip(converted["annotations"], original["annotations"], strict=True):
        assert mine["category_id"] == theirs["category_id"]
        assert mine["bbox"] == pytest.approx(theirs["bbox"])
        assert mine["area"] == pytest.approx(theirs["area"])
        assert mine["segmentation"][0] == pytest.approx(theirs["segmentation"][0])


def converted(rows, photos=Path("nowhere")):
    """One COCO document, and the report."""
    report = Report("x")
    places = [(f"line {number}", row) for number, row in enumerate(rows, start=1)]
    return azureml_to_coco(places, "x", photos, report), report


def row(**label):
    polygon = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]
    details = {"format": "jpg", "width": 100, "height": 50}
    return {"image_url": "a.jpg", "image_details": details, "label": [{"label": "cat", "polygon": polygon} | label]}


@pytest.mark.parametrize(
    ("flag", "crowd"), [("true", 1), ("false", 0), (True, 1), (0, 0), ("1", 1)], ids=["true", "false", "bool", "zero", "one"]
)
def test_crowd_flag_in_any_spelling(flag, crowd):
    coco, report = converted([row(isCrowd=flag)])
    found = normalise(coco, Path("x"), Path("nowhere"), None, report, training=False)
    assert found["annotations"][0]["iscrowd"] == crowd


@pytest.mark.parametrize(
    ("url", "file_name"),
    [
        ("azureml://subscriptions/1/resourcegroups/2/workspaces/3/datastores/4/paths/a/b.jpg", "a/b.jpg"),
        ("AmlDatastore://images/a/b.jpg", "a/b.jpg"),
        ("https://host/a/b.jpg?sas=1", "a/b.jpg"),
        ("a/b.jpg", "a/b.jpg"),
    ],
)
def test_file_name_of_url(url, file_name):
    assert converted([row() | {"image_url": url}])[0]["images"][0]["file_name"] == file_name


def test_two_rings_are_one_object():
    """Areas add up, and the box goes around both."""
    rings = [[0.0, 0.0, 0.1, 0.0, 0.1, 0.1, 0.0, 0.1], [0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.5, 0.6]]
    coco, report = converted([row(polygon=rings)])
    found = normalise(coco, Path("x"), Path("nowhere"), None, report, training=False)["annotations"][0]
    assert found["area"] == pytest.approx(2 * 10 * 5)
    assert found["bbox"] == pytest.approx([0, 0, 60, 30])


def test_a_ring_within_another_is_a_hole():
    """Rings combine by XOR, as AzureML's reader does."""
    rings = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9], [0.3, 0.3, 0.7, 0.3, 0.7, 0.7, 0.3, 0.7]]
    coco, report = converted([row(polygon=rings)])
    found = normalise(coco, Path("x"), Path("nowhere"), None, report, training=False)["annotations"][0]
    assert found["area"] == 80 * 40 - 40 * 20
    mask = decode_rle(found["segmentation"])
    assert (mask[25, 50], mask[8, 50]) == (0, 1)


@pytest.mark.parametrize("details", [None, {}, {"format": "png"}, {"width": "128px", "height": None}], ids=str)
def test_size_is_read_from_the_photo_where_it_is_missing(tiny_coco, details):
    """As exports without `image_details` need it."""
    found, _ = converted([row() | {"image_url": "x://host/1.png", "image_details": details}], tiny_coco / "photos")
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (128, 96)
    assert found["annotations"][0]["segmentation"][0][:4] == pytest.approx([12.8, 9.6, 64, 9.6])


def test_labels_without_an_outline_are_counted(tmp_path):
    """A box alone teaches no mask: what is in it counts as a crowd. The others are kept."""
    path = tmp_path / "a.jsonl"
    with_and_without, box = row(), {"topX": 0, "topY": 0, "bottomX": 0.5, "bottomY": 1}
    with_and_without["label"] += [
        {"label": "cat", "polygon": []} | more for more in ({}, box, box | {"bottomX": 50}, box | {"topX": 0.5})
    ]
    path.write_text(json.dumps(with_and_without))
    found = read_annotations(path, tmp_path, tmp_path)
    assert [(one["iscrowd"], one["bbox"]) for one in found.document()["annotations"]][1:] == [(1, [0, 0, 50, 50])]
    assert found.report.left_out["without an outline"].count == 3
    assert (found.report.objects, found.report.crowds) == (1, 1)


def test_two_urls_with_one_name_are_refused(tmp_path):
    """Their labels would land on one photo."""
    rows = [row() | {"image_url": f"https://host/{folder}/1.jpg"} for folder in "ab"]
    (tmp_path / "1.jpg").touch()
    with pytest.raises(AnnotationsError, match=r"a/1\.jpg and b/1\.jpg are both 1\.jpg"):
        converted(rows, tmp_path)
    with pytest.raises(AnnotationsError, match=r"x: a\.jpg and a\.jpg are both a\.jpg"):
        converted([row(), row()], tmp_path)


DEEP, LONG = "[" * 100_000, '{"images": [' + "1" * 5000 + "]}"
ODD_RING, IN_PIXELS = (
    json.dumps(row(polygon=[ring])) for ring in ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [10, 10, 50, 10, 50, 50])
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"image_url": "a.jpg"}', "label"),
        ("a.jsonl", "{broken", "line 1: not JSON"),
        ("a.jsonl", ODD_RING, r"a\.jsonl: line 1, a\.jpg: .* polygon of 7 numbers"),
        ("a.jsonl", IN_PIXELS, "polygon from 10 to 50: expected fractions"),
        ("a.jsonl", '["a"]', "not AzureML annotations"),
        *(("a.json", content, r"a\.json") for content in ("[]", '{"images": []}', "nothing")),
        *((name, content, "not JSON") for name in ("a.json", "a.jsonl") for content in (DEEP, LONG)),
        *((name, '{"images": "Müll"}'.encode("latin-1"), rf"{name}: not UTF-8") for name in ("a.json", "a.jsonl")),
        ("a.json", gzip.compress(b"{}", mtime=0), "a.json: not UTF-8, but gzip: unpack it"),
        ("a.json", "{}".encode("utf-16"), "a.json: not UTF-8, but UTF-16, as PowerShell"),
        ("a.json", None, r"a\.json: no such file"),
    ],
    ids=lambda value: repr(value[:20]) if value else "nothing",
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationsError, match=message):
        read_annotations(tmp_path / name, tmp_path, tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_lines_end_in_any_way(tmp_path, end):
    (tmp_path / "a.jsonl").write_bytes(end.join(json.dumps(row() | {"image_url": name}) for name in ("a.jpg", "b.jpg")).encode())
    assert read_annotations(tmp_path / "a.jsonl", tmp_path, tmp_path).photo_count == 2


def test_a_few_polygons_in_pixels_are_left_out():
    """As a few COCO outlines in fractions are; more mean that all coordinates are of another kind."""
    good, odd = row()["label"], [{"label": "cat", "polygon": [[10, 10, 50, 10, 50, 50]]}]
    coco, report = converted([row() | {"label": good * 20 + odd}])
    assert len(coco["annotations"]) == 20
    assert report.left_out["with coordinates that are not fractions of the photo"].count == 1
    with pytest.raises(AnnotationsError, match=r"polygon from 10 to 50: expected fractions .*, as 3 of 23 do"):
        converted([row() | {"label": good * 20 + odd * 3}])


def test_an_mltable_that_lists_a_file_twice(tmp_path):
    """By its name and by a pattern; and `folder`, as batches read it."""
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "deep" / "a.jsonl").write_text(json.dumps(row()))
    for paths in ("  - file: ./set/deep/a.jsonl\n  - pattern: '**/*.jsonl'\n", "  - folder: ./set/deep\n"):
        (tmp_path / "MLTable").write_text(f"paths:\n{paths}")
        assert read_annotations(tmp_path, tmp_path, tmp_path / "scratch").photo_count == 1
    (tmp_path / "MLTable").write_text("paths:\n  - file: ./set/deep/a.jsonl\n  - pattern: more*.jsonl\n")
    with pytest.raises(AnnotationsError, match=r"pattern more\*\.jsonl: there is no file"):
        read_annotations(tmp_path, tmp_path, tmp_path / "scratch")
