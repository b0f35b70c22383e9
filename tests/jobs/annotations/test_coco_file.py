"""Unusual COCO files from common tools are converted to a form that mmdet and pycocotools read alike."""

from __future__ import annotations

import importlib
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jobs.annotations.coco_objects import BOX_ALONE
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


def read(tmp_path, photos, annotations, categories=None, image=None, **how):
    """Write a COCO file with one photo and read it; `image` has what is other than in a.jpg's entry."""
    image = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48} | (image or {})
    document = {
        "images": [image],
        "annotations": [{"image_id": 7, "category_id": 1} | annotation for annotation in annotations],
        "categories": categories or [{"id": 1, "name": "ball"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return read_annotations(tmp_path / "coco.json", photos, tmp_path / "scratch", **how)


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
    """mmdet's training silently ignores RLE masks."""
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    rle = coco_mask.encode(mask)
    counts = rle["counts"].decode() if compressed else [10 * 48 + 10, *[20, 28] * 19, 20, 48 * 34 + 18]
    found = read(tmp_path, photos, [{"id": 1, "segmentation": {"size": [48, 64], "counts": counts}}], training=True)
    ((_, box, polygons),) = in_mmdet(found)
    assert box == pytest.approx([10, 10, 30, 30])
    traced = decode_rle(coco_mask.merge(coco_mask.frPyObjects(polygons, 48, 64)))
    assert np.count_nonzero(traced & mask) / np.count_nonzero(traced | mask) > 0.9
    metrics = read(tmp_path, photos, [{"id": 1, "segmentation": [{"size": [48, 64], "counts": counts}]}])
    assert isinstance(metrics.document()["annotations"][0]["segmentation"], dict)


def test_a_box_alone_is_ignored_not_background(tmp_path, photos):
    """Its area counts as a crowd, so that a training does not learn that the object is none. Boxes in another form are left out."""
    alone = [
        {"id": 1, "bbox": [5, 5, 20, 30]},
        {"id": 2, "segmentation": [], "bbox": [0.1, 0.1, 0.3, 0.3]},
        {"id": 3, "bbox": [5, 5, 64, 48]},
    ]
    found = read(tmp_path, photos, [*alone, {"id": 4, "segmentation": [SQUARE]}], training=True)
    assert (found.report.objects, found.report.crowds) == (1, 1)
    assert found.report.left_out[BOX_ALONE].first == "annotation 1, a.jpg"
    assert found.report.left_out["without an outline"].count == 2
    crowd, _ = found.document()["annotations"]
    assert (crowd["iscrowd"], crowd["bbox"], crowd["segmentation"]) == (1, [5, 5, 20, 30], [[5, 5, 25, 5, 25, 35, 5, 35]])
    with pytest.raises(AnnotationsError, match=r"no objects to train or measure on\. Export outlines"):
        read(tmp_path, photos, alone, training=True)


@pytest.mark.parametrize(
    ("segmentation", "noted"),
    [
        ([SQUARE, [15.0, 15.0, 25.0, 15.0, 25.0, 25.0, 15.0, 25.0]], "objects have a ring within another"),
        ([SQUARE, SQUARE], None),
        ([SQUARE, [30.0, 30.0, 40.0, 30.0, 40.0, 40.0]], None),
        ([[40.0, 10.0, 72.0, 10.0, 72.0, 30.0]], "outlines reach more than 5% beyond their photo"),
        ([[40.0, 10.0, 65.0, 10.0, 65.0, 30.0]], None),
    ],
    ids=["a hole", "the same ring", "beside each other", "beyond", "a little beyond"],
)
def test_outlines_that_may_be_meant_differently_are_noted(tmp_path, photos, segmentation, noted):
    told = read(tmp_path, photos, [{"id": 1, "segmentation": segmentation}], training=True).report.noted
    assert [what.partition(" COCO")[0].partition(" and")[0].rstrip(".") for what in told] == ([noted] if noted else [])


def test_missing_fields_are_filled_in(tmp_path, photos):
    """No area, no box, no iscrowd, a flat polygon, a photo without its size."""
    found = read(tmp_path, photos, [{"segmentation": SQUARE}], image={"width": None, "height": None}, training=True)
    document = found.document()
    (object_,) = document["annotations"]
    assert object_["area"] == pytest.approx(400, rel=0.1)
    assert object_["bbox"] == pytest.approx([10, 10, 20, 20], abs=1)
    assert (object_["iscrowd"], object_["segmentation"]) == (0, [SQUARE])
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (64, 48)
    assert "repaired: 1 sizes taken from the upright photo (first: a.jpg)" in found.summary


def test_left_out_objects_are_reported(tmp_path, photos):
    """Objects without outline, photo or category are counted; no object at all is an error."""
    useless = [{"id": 1, "segmentation": []}, {"id": 2, "image_id": 99, "segmentation": [SQUARE]}, {"id": 3, "segmentation": {}}]
    found = read(tmp_path, photos, [*useless, {"id": 4, "segmentation": [SQUARE, [1.0, 2.0]]}], training=True)
    assert found.summary.splitlines() == [
        "coco.json: 1 photos, 1 objects",
        "  left out: 2 without an outline (first: annotation 1, a.jpg)",
        "  left out: 1 of no photo in the file (first: annotation 2, image_id 99)",
        "  left out: 1 polygons of fewer than three points (first: annotation 4, a.jpg)",
    ]
    with pytest.raises(AnnotationsError, match=r"2 without an outline .*--strict allows none"):
        read(tmp_path, photos, [*useless, {"id": 4, "segmentation": [SQUARE]}], strict=True)
    with pytest.raises(AnnotationsError, match="no objects to train or measure on"):
        read(tmp_path, photos, useless, training=True)


def test_validation_uses_the_classes_of_the_training_set(tmp_path, photos):
    """By name, regardless of its own ids; a name that the training set does not have is an error."""
    own = [{"id": 5, "name": "egg"}]
    found = read(tmp_path, photos, [{"category_id": 5, "segmentation": [SQUARE]}], own, training=True, classes=("ball", "egg"))
    assert found.classes == ("ball", "egg")
    assert [name for name, *_ in in_mmdet(found)] == ["egg"]
    with pytest.raises(AnnotationsError, match=r"does not have: egg \(it has ' Egg'\)\. It has"):
        read(tmp_path, photos, [{"category_id": 5, "segmentation": [SQUARE]}], own, training=True, classes=("ball", " Egg"))
    with pytest.raises(AnnotationsError, match=r"does not have: egg\."):
        read(tmp_path, photos, [{"category_id": 5, "segmentation": [SQUARE]}], own, training=True, classes=("ball",))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"segmentation": [[1, 1, 9, None, 9, 9]]}, "not a finite number"),
        ({"segmentation": [[1, 1, 9, float("nan"), 9, 9]]}, "not a finite number"),
        ({"segmentation": [["a", 1, 9, 1, 9, 9]]}, "neither polygons nor RLE"),
        ({"segmentation": [[1, 1, 9, 1, 9, 9, 5]]}, "a polygon of 7 numbers"),
        ({"segmentation": [[1, 1, 1e12, 1, 9, 9]]}, "more than 640 pixels from its photo"),
        ({"segmentation": {"size": [48, 64], "counts": None}}, "not RLE|do not add up"),
        ({"segmentation": {"size": [48, 64], "counts": [10, 20]}}, "do not add up to 48 x 64"),
        ({"segmentation": {"size": [64, 48], "counts": [64 * 48]}}, r"\[64, 48\], .* \[48, 64\]: it is \[width, height\]"),
        ({"segmentation": {"size": [24, 32], "counts": [24 * 32]}}, r"\[24, 32\], where"),
        ({"segmentation": {"size": [48, 64], "counts": "0~~"}}, "counts are damaged"),
        ({"segmentation": "polygon"}, "neither polygons nor RLE"),
        ({"iscrowd": "perhaps"}, "its iscrowd is 'perhaps'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_numbers_are_named(tmp_path, photos, fault, message):
    """With the file and the annotation, before mmdet or shapely stumble over them."""
    for training in (True, False):
        with pytest.raises(AnnotationsError, match=rf"coco\.json: annotation 12, a\.jpg: .*({message})"):
            read(tmp_path, photos, [{"id": 12, "segmentation": [SQUARE]} | fault], training=training)


@pytest.mark.parametrize(
    ("factor", "told"),
    [(1.02, None), (1.4, "check: 4 boxes fit their outlines loosely"), (1.8, "its bbox does not fit its outline, as 4 of 4 do")],
)
def test_boxes_of_another_size_than_their_outlines_are_reported(tmp_path, photos, factor, told):
    """One of both is wrong, and which cannot be seen."""
    objects = [{"id": n, "segmentation": [SQUARE], "bbox": [10, 10, 20 * factor, 20 * factor]} for n in range(4)]
    if factor > 1.7:
        with pytest.raises(AnnotationsError, match=told):
            read(tmp_path, photos, objects, training=True)
    else:
        assert (told or "4 objects") in (summary := read(tmp_path, photos, objects, training=True).summary)
        assert ("check:" in summary) == bool(told)


def test_boxes_by_their_centres_are_taken_from_the_outline(tmp_path, photos):
    objects = [{"id": n, "segmentation": [SQUARE], "bbox": [20, 20, 20, 20]} for n in range(4)]
    assert "repaired: 4 boxes taken from the outline" in read(tmp_path, photos, objects, training=True).summary


def test_masks_of_cvat_are_reported(tmp_path, photos):
    """CVAT marks all masks as crowds, which are neither trained on nor counted: without a word, a model learns to see nothing there."""
    rle = {"size": [48, 64], "counts": [10 * 48 + 10, *[20, 28] * 19, 20, 48 * 34 + 18]}
    mask, ring = {"segmentation": rle, "iscrowd": 1}, {"segmentation": [SQUARE]}
    told = "have iscrowd 1, so they are neither trained on nor counted. CVAT and others mark all masks so"
    assert f"2 of 3 annotations {told}" in read(tmp_path, photos, [mask, mask, ring], training=True).summary
    for crowd in (mask, ring | {"iscrowd": 1}):
        with pytest.raises(AnnotationsError, match="1 of 1 annotations have iscrowd 1"):
            read(tmp_path, photos, [crowd], training=True)
    assert told not in read(tmp_path, photos, [mask, *[ring] * 9], training=True).summary


def test_a_single_odd_box_is_repaired(tmp_path, photos):
    """The box is taken from the outline. An outline without width is left out, and one that passes a corner of the photo outside."""
    line = {"segmentation": [[9, 9, 9, 20, 9, 15]], "bbox": [9, 9, 0, 11]}
    passing = {"segmentation": [[-30, 8, 8, -30, -30, -30]]}
    odd = {"segmentation": [[40, 30, 60, 30, 60, 44]], "bbox": [1, 2, 10, 10]}
    none, text = ({"segmentation": [SQUARE], "bbox": box} for box in ([0, 0, 0, 0], ["10", "10", "20", "20"]))
    found = read(tmp_path, photos, [line, passing, odd, none, text, *[{"segmentation": [SQUARE]}] * 2])
    assert found.report.objects == 5
    assert found.report.left_out["smaller than a pixel"].count == 2
    assert found.report.repaired["boxes taken from the outline"].count == 1
    boxes = [entry["bbox"] for entry in found.document()["annotations"]]
    assert boxes == [[40, 30, 20, 14], *[[10, 10, 20, 20]] * 4]


def test_the_report_describes_the_training_set(tmp_path, photos):
    """Categories that no object has become classes all the same, photos without objects are negatives, crowds teach nothing."""
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "balls"}]
    found = read(tmp_path, photos, [{"segmentation": [SQUARE]}], categories, training=True)
    assert found.summary.endswith("1 photos, 1 objects\n  no object of balls")
    with pytest.raises(AnnotationsError, match="no objects to train or measure on"):
        read(tmp_path, photos, [{"segmentation": [SQUARE], "iscrowd": 1}], training=True)


CUT, UPLOADED, SPELLED = (
    "without the first folders of",
    "without the prefix of Label Studio's uploads",
    "under another spelling of",
)
NFC, NFD = (unicodedata.normalize(form, "über.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "found_as", "how"),
    [
        *((name, "a.jpg", CUT) for name in ("UI/2023/a.jpg", "..\\..\\up\\a.jpg", "/data/a.jpg", "C:\\photos\\a.jpg")),
        ("./a.jpg", "a.jpg", ""),
        ("../../label-studio/data/media/upload/1/3fa2b1c9-a.jpg", "a.jpg", UPLOADED),
        ("https://host/sub/a.jpg?sig=1%2F2&se=x", "sub/a.jpg", CUT),
        ("/data/local-files/?d=sub/a.jpg", "sub/a.jpg", CUT),
        ("odd?.jpg", "odd?.jpg", ""),
        (NFC, NFC, ""),
        (NFC.replace("jpg", "png"), NFD.replace("jpg", "png"), SPELLED),
        (NFD, NFC, SPELLED),
    ],
)
def test_photos_are_found_by_the_names_that_tools_write(tmp_path, photos, name, found_as, how):
    """From a datastore's or a disk's root on, with a query, with ü as two characters as on macOS; the report says how."""
    (photos / "sub").mkdir()
    for other in ("sub/a.jpg", "odd?.jpg", NFC, NFD.replace("jpg", "png")):
        Image.new("RGB", (64, 48)).save(photos / other)
    found = read(tmp_path, photos, [{"segmentation": [SQUARE]}], image={"file_name": name}, training=True)
    assert found.document()["images"][0]["file_name"] == found_as
    assert in_mmdet(found)
    assert f"photos found {how}" in found.summary if how else "photos found" not in found.summary


def test_one_photo_under_two_ids_is_one_photo(tmp_path, photos):
    """It would train once with and once without its objects."""
    document = {
        "images": [
            {"id": number, "file_name": name} for number, name in ((1, "a.jpg"), (2, "./a.jpg"), (3, str(photos / "a.jpg")))
        ],
        "annotations": [{"id": number, "image_id": number, "category_id": 1, "segmentation": [SQUARE]} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "ball"}],
    }
    (tmp_path / "twice.json").write_text(json.dumps(document))
    found = read_annotations(tmp_path / "twice.json", photos, tmp_path / "scratch", training=True)
    assert (found.photo_count, len(in_mmdet(found))) == (1, 3)
    assert "2 photos that stand there under two ids joined" in found.summary


@pytest.mark.parametrize("there", [True, False])
def test_two_photos_of_one_name_are_not_joined(tmp_path, photos, there):
    """Exports of several folders may name files alone; the objects of one photo would be drawn on the other."""
    name = "a.jpg" if there else "elsewhere.jpg"
    images = [{"id": 1, "file_name": name, "width": 64, "height": 48}, {"id": 2, "file_name": name, "width": 640, "height": 480}]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ball"}]}
    (tmp_path / "twice.json").write_text(json.dumps(document))
    with pytest.raises(AnnotationsError, match=rf"photo 2: .*{name} is .*640 x 480"):
        read_annotations(tmp_path / "twice.json", photos, tmp_path / "scratch")


def test_objects_that_are_there_twice_are_reported(tmp_path, photos):
    """Of exports that were put together: an AP against them is half of what it is. Crowds may be alike, and other classes."""
    almost = [10.2, *SQUARE[1:]]
    objects = [{"segmentation": [ring]} for ring in (SQUARE, almost, SQUARE)]
    others = [{"segmentation": [SQUARE], "iscrowd": 1}, {"segmentation": [SQUARE], "category_id": 2}]
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "egg"}]
    told = read(tmp_path, photos, [*objects, *others], categories).summary
    assert "2 objects annotated twice, the same class and box in one photo (such as in a.jpg)" in told


def test_missing_photos_are_named_before_training(tmp_path, photos):
    """Not in the middle of an epoch."""
    (photos / "a.jpg").unlink()
    with pytest.raises(
        AnnotationsError,
        match=r"1 of 1 photos are missing in .*first: a\.jpg\. Copy them there, or take them out of the annotations\.$",
    ):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], training=True)
    Image.new("RGB", (64, 48)).save(photos / "a.png")
    with pytest.raises(AnnotationsError, match=r"There is .*a\.png: the suffix differs"):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], training=True)
    (photos / "images").mkdir()
    Image.new("RGB", (64, 48)).save(photos / "images" / "a.jpg")
    with pytest.raises(AnnotationsError, match=r"a\.jpg is in .*images: name that folder"):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], training=True)
    Image.new("RGB", (64, 48)).save(photos / "A.JPG")
    with pytest.raises(AnnotationsError, match=r"There is .*A\.JPG: capitals differ"):
        read(tmp_path, photos, [{"segmentation": [SQUARE]}], training=True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"categories": [{"name": "ball"}]}, "category number 0: its id is missing or wrong"),
        ({"categories": [{"id": 1, "name": None}]}, "category 1: its name is missing or wrong"),
        ({"images": [{"id": 7, "width": 64, "height": 48}]}, "photo 7: its file_name is missing or wrong"),
        ({"images": [{"id": [7], "file_name": "a.jpg"}]}, "its id is missing or wrong"),
        ({"images": None}, "its images are not a list"),
        ({"annotations": [1]}, "entry 0 of its annotations is int"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "2 entries with the photo id 7"),
        ({"categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "ball"}]}, "2 entries with the category name 'ball'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_not_coco_are_named(tmp_path, photos, document, message):
    """With the file, not as a bare KeyError; duplicates are refused, because they would be lost silently."""
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
    with pytest.raises(AnnotationsError, match=r"photo 7: a\.jpg is 64 x 48 pixels upright.* annotated as 48 x 64.*remove the"):
        read(tmp_path, photos, object_, image={"width": 48, "height": 64}, training=True)
    (photos / "a.jpg").write_bytes(b"")
    with pytest.raises(AnnotationsError, match=r"a\.jpg: not a readable photo"):
        read(tmp_path, photos, object_, training=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("area", 0),
        ("area", [400.0]),
        ("area", None),
        ("area", "x"),
        ("iscrowd", "false"),
        ("iscrowd", None),
        ("bbox", [1, 2]),
        ("bbox", None),
        ("bbox", [10, 10, float("nan"), 5]),
        ("image_id", "7"),
        ("category_id", "1"),
        ("category_id", 1.0),
        ("ignore", 0),
    ],
    ids=str,
)
def test_fields_of_another_type_are_read(tmp_path, photos, field, value):
    """mmdet drops the objects, or ends in a traceback."""
    ((_, box, _),) = in_mmdet(read(tmp_path, photos, [{"segmentation": [SQUARE], field: value}], training=True))
    assert box == [10, 10, 30, 30]


@pytest.mark.parametrize(
    ("width", "height"), [("64", "48"), ("64px", "48"), (64.0, 48.0), (None, 48), (0, 0), ("wide", 48)], ids=str
)
def test_sizes_of_another_type_are_read(tmp_path, photos, width, height):
    found = read(tmp_path, photos, [{"segmentation": [SQUARE]}], image={"width": width, "height": height}, training=True)
    (photo,) = found.document()["images"]
    assert (photo["width"], photo["height"]) == (64, 48)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"segmentation": [[0.2, 0.25, 0.6, 0.25, 0.6, 0.75]]}, "its coordinates lie between 0 and 1, fractions .* as 2 of 2 do"),
        ({"segmentation": [[100, 100, 130, 100, 130, 130]]}, "its outline lies outside its photo, as 2 of 2 do"),
        (
            {"segmentation": [[40, 30, 50, 30, 50, 36]], "bbox": [1, 2, 3, 4]},
            "its bbox lies elsewhere than its outline; .* width, height, as 2 of 2 do",
        ),
        (
            {"segmentation": [[10, 10, 10, 40, 14, 40, 14, 10]], "bbox": [10, 10, 30, 4]},
            "its outline fits its bbox with x and y exchanged; COCO has x before y, as 2 of 2 do",
        ),
        ({"segmentation": [SQUARE], "bbox": [10, 10, 30, 30]}, "its bbox is two corners"),
    ],
    ids=["fractions", "outside", "boxes elsewhere", "y before x", "corners"],
)
def test_a_file_of_other_coordinates_is_refused(tmp_path, photos, odd, message):
    """A few such objects among others are left out and reported, or get the box of their outline."""
    for training in (True, False):
        with pytest.raises(AnnotationsError, match=rf"coco\.json: annotation 12, a\.jpg: {message}"):
            read(tmp_path, photos, [odd | {"id": 12}] * 2, training=training)
    report = read(tmp_path, photos, [*[{"segmentation": [SQUARE]}] * 9, odd], training=True).report
    assert [noted.count for noted in (*report.left_out.values(), *report.repaired.values())] == [1]


@pytest.mark.parametrize(("area", "read_as"), [(0.13, 401), (1, 401), (9000, 401), (210, 210), (441, 441)])
def test_areas_that_are_none_are_taken_from_the_outline(tmp_path, photos, area, read_as):
    """COCO's small, medium and large objects go by it. That of the box, as some tools write, stays."""
    found = read(tmp_path, photos, [{"segmentation": [SQUARE], "area": area}])
    assert found.document()["annotations"][0]["area"] == pytest.approx(read_as, abs=1)
    assert ("areas taken from the outline" in found.summary) == (area != read_as)


def test_a_supercategory_of_any_type_is_read(tmp_path, photos):
    categories = [{"id": 1, "name": "ball", "supercategory": ["toy"]}, {"id": 2, "name": "egg", "supercategory": None}]
    assert read(tmp_path, photos, [{"segmentation": [SQUARE]}], categories, training=True).classes == ("ball", "egg")


@pytest.mark.parametrize("root_name", ["balls", "ball"])
def test_categories_that_only_group_others_are_dropped(tmp_path, photos, root_name):
    """Roboflow's first category groups the others, and no object is of it."""
    categories = [{"id": 0, "name": root_name, "supercategory": "none"}, {"id": 1, "name": "ball", "supercategory": root_name}]
    found = read(tmp_path, photos, [{"segmentation": [SQUARE]}], categories, training=True)
    assert found.classes == ("ball",)
    assert f"1 categories that only group others dropped (first: {root_name}, id 0)" in found.summary
    with_objects = [{"segmentation": [SQUARE], "category_id": 0}, {"segmentation": [SQUARE]}]
    if root_name == "ball":
        with pytest.raises(AnnotationsError, match=r"2 entries with the category name 'ball'; .* Give one of them another name"):
            read(tmp_path, photos, with_objects, categories, training=True)
    else:
        assert read(tmp_path, photos, with_objects, categories, training=True).classes == ("balls", "ball")
