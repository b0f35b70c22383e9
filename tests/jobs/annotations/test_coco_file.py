"""Odd but ordinary COCO files, in the form that mmdet and pycocotools read alike."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import AnnotationsError, read_annotations
from pipeline.model.compiled_ops import ensure_mmcv_ops
from tests.support.mask_examples import decode_rle

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


@pytest.fixture
def photos(tmp_path):
    """A folder with one photo of 64 x 48."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "a.jpg")
    return folder


def read(tmp_path, photos, annotations, categories=None, name="coco.json", image=None, **how):
    """Write a COCO file with one photo, read it, and give what mmdet's dataset makes of it."""
    image = image or {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}
    document = {
        "images": [image],
        "annotations": [{"image_id": 7, "category_id": 1} | annotation for annotation in annotations],
        "categories": categories or [{"id": 1, "name": "ball"}],
    }
    path = tmp_path / name
    path.write_text(json.dumps(document))
    return read_annotations(path, photos, tmp_path / "scratch", **how)


def in_mmdet(found):
    """(class name, box, mask) of the objects, as mmdet trains on them."""
    ensure_mmcv_ops()
    dataset = importlib.import_module("mmdet.datasets").CocoDataset(
        ann_file=str(found.coco_json), data_prefix={"img": f"{found.images}/"}, metainfo={"classes": found.classes}, pipeline=[]
    )
    objects = dataset.get_data_info(0)["instances"]
    return [(found.classes[one["bbox_label"]], one["bbox"], one["mask"]) for one in objects if not one["ignore_flag"]]


def test_channels_follow_the_classes(tmp_path, photos):
    """Categories in another order than their ids: mmdet takes the file's order, the model is named by the ids'."""
    found = read(
        tmp_path,
        photos,
        [{"id": 1, "category_id": 2, "segmentation": [SQUARE]}],
        [{"id": 2, "name": "egg"}, {"id": 1, "name": "ball"}],
        training=True,
    )
    assert found.classes == ("ball", "egg")
    assert [name for name, *_ in in_mmdet(found)] == ["egg"]


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_train(tmp_path, photos, compressed):
    """mmdet's training ignores RLE masks without a word."""
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    rle = coco_mask.encode(mask)
    counts = rle["counts"].decode() if compressed else [10 * 48 + 10, *[20, 28] * 19, 20, 48 * 34 + 18]
    found = read(tmp_path, photos, [{"id": 1, "segmentation": {"size": [48, 64], "counts": counts}}], training=True)
    ((_, box, polygons),) = in_mmdet(found)
    assert box == pytest.approx([10, 10, 30, 30])
    traced = decode_rle(coco_mask.merge(coco_mask.frPyObjects(polygons, 48, 64)))
    assert np.count_nonzero(traced & mask) / np.count_nonzero(traced | mask) > 0.9
    metrics = json.loads(
        read(tmp_path, photos, [{"id": 1, "segmentation": {"size": [48, 64], "counts": counts}}]).coco_json.read_text()
    )
    assert isinstance(metrics["annotations"][0]["segmentation"], dict)


def test_what_is_missing_is_filled_in(tmp_path, photos):
    """No area, no box, no iscrowd, a flat polygon, a photo without its size."""
    found = read(tmp_path, photos, [{"segmentation": SQUARE}], image={"id": 7, "file_name": "a.jpg"}, training=True)
    document = json.loads(found.coco_json.read_text())
    (object_,) = document["annotations"]
    assert object_["area"] == pytest.approx(400, rel=0.1)
    assert object_["bbox"] == pytest.approx([10, 10, 20, 20], abs=1)
    assert (object_["iscrowd"], object_["segmentation"]) == (0, [SQUARE])
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (64, 48)


def test_what_is_left_out_is_told(tmp_path, photos):
    """Objects without an outline, and what is nothing's, are counted; nothing at all to train on is an error."""
    useless = [{"id": 1, "segmentation": []}, {"id": 2, "image_id": 99, "segmentation": [SQUARE]}, {"id": 3}]
    found = read(tmp_path, photos, [*useless, {"id": 4, "segmentation": [SQUARE, [1.0, 2.0]]}], training=True)
    assert "1 photos, 1 objects, 2 left out without an outline, 1 left out of no photo" in found.summary
    with pytest.raises(AnnotationsError, match="nothing to learn"):
        read(tmp_path, photos, useless, training=True)


def test_validation_speaks_of_the_training_sets_classes(tmp_path, photos):
    """By name, whatever its own ids are; a name that training does not know is an error."""
    own = [{"id": 5, "name": "egg"}]
    found = read(tmp_path, photos, [{"category_id": 5, "segmentation": [SQUARE]}], own, training=True, classes=("ball", "egg"))
    assert found.classes == ("ball", "egg")
    assert [name for name, *_ in in_mmdet(found)] == ["egg"]
    with pytest.raises(AnnotationsError, match="does not know: egg"):
        read(tmp_path, photos, [{"category_id": 5, "segmentation": [SQUARE]}], own, training=True, classes=("ball",))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"segmentation": [[1, 1, 9, None, 9, 9]]}, "not a finite number"),
        ({"segmentation": [[1, 1, 9, float("nan"), 9, 9]]}, "not a finite number"),
        ({"segmentation": [["a", 1, 9, 1, 9, 9]]}, "neither polygons nor RLE"),
        ({"bbox": [1, 2]}, "unpack"),
        ({"bbox": [1, 2, 3, None]}, "not finite"),
    ],
    ids=["null", "NaN", "text", "half a box", "no number in a box"],
)
def test_numbers_that_are_none_are_named(tmp_path, photos, fault, message):
    """With the file and the annotation, before mmdet or shapely stumble over them."""
    for training in (True, False):
        with pytest.raises(AnnotationsError, match=rf"coco\.json: annotation 12: .*{message}"):
            read(tmp_path, photos, [{"id": 12, "segmentation": [SQUARE]} | fault], training=training)


def test_boxes_of_another_kind_are_told(tmp_path, photos):
    """Two corners, say, for COCO's corner and size."""
    corners = {"id": 12, "segmentation": [[40, 30, 50, 30, 50, 36]], "bbox": [1, 2, 3, 4]}
    with pytest.raises(
        AnnotationsError, match=r"annotation 12: its bbox \[1\.0, .* elsewhere .*, as 2 of 2 do; COCO's is x, y, width"
    ):
        read(tmp_path, photos, [corners, corners])


def test_a_single_odd_box_stops_nothing(tmp_path, photos):
    """Large files have some; nor does a box without width, of an outline without."""
    line = {"segmentation": [[9, 9, 9, 20, 9, 15]], "bbox": [9, 9, 0, 11]}
    odd = {"segmentation": [[40, 30, 60, 30, 60, 44]], "bbox": [1, 2, 10, 10]}
    none = {"segmentation": [SQUARE], "bbox": [0, 0, 0, 0]}
    found = read(tmp_path, photos, [line, odd, none, *[{"segmentation": [SQUARE]}] * 3])
    assert "6 objects" in found.summary
    boxes = [entry["bbox"] for entry in json.loads(found.coco_json.read_text())["annotations"]]
    assert boxes[2] == boxes[3] != [0, 0, 0, 0]


def test_what_is_in_a_training_set_is_told(tmp_path, photos):
    """Categories that no object has become classes all the same, photos without objects are negatives, crowds teach nothing."""
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "balls"}]
    found = read(tmp_path, photos, [{"segmentation": [SQUARE]}], categories, training=True)
    assert found.summary.endswith("1 photos, 1 objects; no object of balls")
    with pytest.raises(AnnotationsError, match="nothing to learn"):
        read(tmp_path, photos, [{"segmentation": [SQUARE], "iscrowd": 1}], training=True)


def test_photos_that_lie_without_their_folders_are_told(tmp_path, photos):
    """As AzureML's exports name them, from the datastore's root on."""
    image = {"id": 7, "file_name": "UI/2023/a.jpg", "width": 64, "height": 48}
    with pytest.raises(AnnotationsError, match=r"first: UI/2023/a\.jpg \(a\.jpg is there, without its folders"):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], image=image, training=True)


def test_missing_photos_are_named_before_training(tmp_path, photos):
    """Not in the middle of an epoch."""
    (photos / "a.jpg").unlink()
    with pytest.raises(AnnotationsError, match=r"1 of 1 photos are missing in .*first: a\.jpg"):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], training=True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"categories": [{"name": "ball"}]}, "missing or wrong: 'id'"),
        ({"images": [{"id": 7, "width": 64, "height": 48}]}, "missing or wrong: 'file_name'"),
        ({"images": None}, "missing or wrong"),
        ({"annotations": [1]}, "missing or wrong"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "2 entries with the photo id 7"),
        ({"categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "ball"}]}, "2 entries with the category name 'ball'"),
    ],
    ids=["no category id", "no file name", "null", "a number", "photo twice", "category twice"],
)
def test_what_no_coco_file_has_is_named(tmp_path, photos, document, message):
    """With the file, and not as a bare KeyError; what is there twice would be lost in silence."""
    whole = {"images": [{"id": 7, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "ball"}], "annotations": []}
    whole["annotations"].append({"image_id": 7, "category_id": 1, "segmentation": [SQUARE]})
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(whole | document))
    with pytest.raises(AnnotationsError, match=rf"odd\.json: .*{message}"):
        read_annotations(path, photos, tmp_path / "scratch", training=True)


def test_photos_of_another_size_are_named_before_training(tmp_path, photos):
    """Annotated as the camera stored it, sideways; with the tag, and turned for good. And a photo that is none."""
    sideways = Image.new("RGB", (48, 64))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(photos / "a.jpg", exif=exif)
    object_ = [{"segmentation": [SQUARE]}]
    assert read(tmp_path, photos, object_, training=True).photo_count == 1
    with pytest.raises(AnnotationsError, match=r"a\.jpg is 64 x 48 pixels upright.* annotated as 48 x 64"):
        read(tmp_path, photos, object_, image={"id": 7, "file_name": "a.jpg", "width": 48, "height": 64}, training=True)
    (photos / "a.jpg").write_bytes(b"")
    with pytest.raises(AnnotationsError, match=r"a\.jpg: not a readable photo"):
        read(tmp_path, photos, object_, training=True)


def test_an_outline_of_neither_kind(tmp_path, photos):
    """The message names the file and the annotation."""
    with pytest.raises(AnnotationsError, match=r"coco\.json: annotation 12: its segmentation"):
        read(tmp_path, photos, [{"id": 12, "segmentation": {"size": [48, 64], "counts": None}}], training=True)
