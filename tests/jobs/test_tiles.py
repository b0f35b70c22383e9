"""Annotated photos in tiles: what each shows of an object, and that training reads the set."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import read_annotations
from jobs.annotations.outlines import BoxMask, rle_to_box_mask
from jobs.tiles import main, parts_of, tile_boxes
from tests.support.mask_examples import decode_rle


def test_places():
    """Squares, as many as asked along the long side, the last one at the edge; with the whole photo first, where asked."""
    assert tile_boxes((100, 180), 2, 0.2, whole=False) == [(0, 0, 100, 100), (80, 0, 100, 100)]
    assert tile_boxes((30, 30), 2, 0.0, whole=True) == [
        (0, 0, 30, 30),
        (0, 0, 15, 15),
        (15, 0, 15, 15),
        (0, 15, 15, 15),
        (15, 15, 15, 15),
    ]
    assert tile_boxes((1, 1), 2, 0.2, whole=True) == [(0, 0, 1, 1)]
    narrow = tile_boxes((8, 10), 40, 0.2, whole=False)
    assert len(narrow) == len(set(narrow)) == 80


def test_parts_of_an_object():
    """Little of it is a crowd, nothing of it is nothing."""
    mask = np.zeros((10, 30), np.uint8)
    mask[2:4, 8:18] = 1
    whole = BoxMask(8, 2, mask[2:4, 8:18])
    (first, few), (second, most) = parts_of(whole, [(0, 0, 10, 10), (10, 0, 10, 10), (20, 0, 10, 10)], 0.3, crowd=False)
    assert (first, few["area"], few["iscrowd"], few["bbox"]) == (0, 4, 1, [8, 2, 2, 2])
    assert (second, most["area"], most["iscrowd"], most["bbox"]) == (1, 16, 0, [0, 2, 8, 2])
    assert (decode_rle(most["segmentation"]) == mask[:, 10:20]).all()
    assert next(parts_of(whole, [(0, 0, 30, 10)], 0.3, crowd=True))[1]["iscrowd"] == 1


@given(arrays(np.uint8, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.integers(0, 1)), st.integers(2, 4))
def test_parts_are_the_pixels_of_their_tiles(mask, tiles):
    places = tile_boxes(mask.shape, tiles, 0.2, whole=True)
    parts = dict(parts_of(rle_to_box_mask(coco_mask.encode(np.asfortranarray(mask))), places, 0.3, crowd=False))
    for number, (x, y, width, height) in enumerate(places):
        crop = mask[y : y + height, x : x + width]
        assert (number in parts) == bool(crop.any())
        if number in parts:
            assert (decode_rle(parts[number]["segmentation"]) == crop).all()


def test_a_set_is_cut(tiny_coco, tmp_path, capsys):
    """Pixels and masks of the tiles are those of the photos; training takes the new set as it is."""
    output = tmp_path / "tiled"
    assert main([str(tiny_coco / "coco.json"), "--images", str(tiny_coco / "photos"), "--output", str(output), "--whole"]) == 0
    assert "6 photos are 30 images now; 5 objects are" in capsys.readouterr().out
    tiled = json.loads((output / "annotations.json").read_text())
    read = read_annotations(output / "annotations.json", output / "images", tmp_path / "scratch", training=True)
    assert read.classes == ("ball", "egg")
    for image in tiled["images"]:
        pixels = cv2.imread(str(output / "images" / image["file_name"]))
        assert pixels.shape[:2] == (image["height"], image["width"])
        for found in (found for found in tiled["annotations"] if found["image_id"] == image["id"]):
            inside = decode_rle(found["segmentation"]).astype(bool)
            assert np.abs(pixels[inside].mean(0) - (60, 120, 240)).max() < 25, "the object's own colour"


def test_white_level(tmp_path):
    """Tiles have 8 bits, so it cannot be given later: a dark frame of 16 bits stays dark."""
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((40, 40), 3855, np.uint16))
    ring = [5, 5, 35, 5, 35, 35, 5, 35]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [ring]}]
    document = {
        "images": [{"id": 1, "file_name": "dark.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    common = [str(tmp_path / "coco.json"), "--images", str(tmp_path), "--white-level", "65535", "--output"]
    assert main([*common, str(tmp_path / "tiled")]) == 0
    assert {cv2.imread(str(path)).max() for path in (tmp_path / "tiled" / "images").iterdir()} == {15}


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--tiles", "1"], "--tiles is 2 or more"), (["--overlap", "0.95"], "--overlap at most 0.9"), ([], "is not empty")],
)
def test_what_is_refused(tiny_coco, tmp_path, capsys, more, said):
    (tmp_path / "file").touch()
    output = tmp_path / "new" if more else tmp_path
    with pytest.raises(SystemExit) as ended:
        main([str(tiny_coco / "coco.json"), "--images", str(tiny_coco / "photos"), "--output", str(output), *more])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_photo_that_is_missing(tiny_coco, tmp_path, capsys):
    """Reported in a line."""
    assert main([str(tiny_coco / "coco.json"), "--images", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert "1.png" in capsys.readouterr().err


def annotated(folder, photos):
    """A COCO file and photos of one colour each, without objects: file name to (width, height, grey)."""
    images = []
    for number, (name, (width, height, grey)) in enumerate(photos.items(), 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((height, width, 3), grey, np.uint8))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ball"}]}
    (folder / "coco.json").write_text(json.dumps(document))
    return [str(folder / "coco.json"), "--images", str(folder)]


def test_an_upright_photo_and_its_first_tile_are_two_files(tmp_path):
    """They begin at the same corner and are equally wide."""
    arguments = annotated(tmp_path / "photos", {"tower.png": (100, 180, 90)})
    assert main([*arguments, "--output", str(tmp_path / "tiled"), "--whole"]) == 0
    images = json.loads((tmp_path / "tiled/annotations.json").read_text())["images"]
    assert len({image["file_name"] for image in images}) == len(images) == 3
    for image in images:
        pixels = cv2.imread(str(tmp_path / "tiled/images" / image["file_name"]))
        assert pixels.shape[:2] == (image["height"], image["width"])


def test_tiles_of_two_photos_do_not_replace_each_other(tmp_path, capsys):
    """Photos whose names differ in the folder separator or the suffix alone."""
    arguments = annotated(tmp_path / "photos", {"a/b.png": (40, 40, 90), "a_b.png": (40, 40, 200)})
    assert main([*arguments, "--output", str(tmp_path / "tiled")]) == 2
    assert "a_b.png: rename it" in capsys.readouterr().err
    assert not list((tmp_path / "tiled").iterdir()), "what a run that ended half-way leaves is in the way of the next one"


def test_names_that_are_long_or_not_utf8(tiny_coco, tmp_path):
    """Two that differ only at their beginning have tiles of their own."""
    names = [f"{first}{'n' * 245}.png" for first in "ab"] + [os.fsdecode(b"caf\xe9.png")]
    coco = json.loads((tiny_coco / "coco.json").read_text())
    (tmp_path / "photos").mkdir()
    for image, name in zip(coco["images"], names, strict=False):
        shutil.copy(tiny_coco / "photos" / image["file_name"], tmp_path / "photos" / name)
        image["file_name"] = name
    coco["images"] = coco["images"][:3]
    coco["annotations"] = [found for found in coco["annotations"] if found["image_id"] <= 3]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    output = tmp_path / "tiled"
    assert main([str(tmp_path / "coco.json"), "--images", str(tmp_path / "photos"), "--output", str(output)]) == 0
    tiled = {image["file_name"] for image in json.loads((output / "annotations.json").read_text())["images"]}
    assert tiled == {path.name for path in (output / "images").iterdir()}
    assert len(tiled) == 12
