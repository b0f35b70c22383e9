"""Comparison of two sides over one folder: matches, missed objects and exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image
from pycocotools import mask as coco_mask

from jobs import compare, pictures
from jobs.compare import page
from jobs.comparison.matching import agreement, match
from pipeline.types import SegmentedObject
from tests.support.stub_service import stub_service


def square(x, y, side=0.2, label="person", score=0.9):
    ring = [x, y, x + side, y, x + side, y + side, x, y + side, x, y]
    return {
        "box": {"topX": x, "topY": y, "bottomX": x + side, "bottomY": y + side},
        "label": label,
        "score": score,
        "polygon": [ring],
    }


def item(*args, **kwargs):
    row = square(*args, **kwargs)
    return SegmentedObject(tuple(row["box"].values()), row["label"], row["score"], row["polygon"])


@pytest.fixture
def folder(tmp_path):
    """Two grey photos, and what two models said of them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100), (90, 90, 90)).save(photos / name)
    write(tmp_path / "old.jsonl", a=[square(0.1, 0.1), square(0.6, 0.6)], b=[square(0.4, 0.4)])
    return photos


def write(path, **answers):
    lines = [{"row_number_per_file": 0, "preds": {"boxes": boxes}, "file_name": f"{name}.png"} for name, boxes in answers.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder, second, *more):
    return compare.main([str(folder), str(folder.parent / "old.jsonl"), str(second), *more])


def summary_of(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_no_match_meets_no_threshold_of_matches(folder, capsys):
    """Labels of other capitals, say: the mean IoU of nothing is not good."""
    other = write(
        folder.parent / "new.jsonl",
        a=[square(0.1, 0.1, label="Person"), square(0.6, 0.6, label="Person")],
        b=[square(0.4, 0.4, label="Person")],
    )
    assert run(folder, other, "--min-mask-iou", "0.9") == run(folder, other, "--max-score-shift", "0.1") == 1
    assert "no objects match, so --max-score-shift cannot be met" in capsys.readouterr().err
    assert run(folder, other) == 0
    assert summary_of(capsys)["labels_alone"] == [["person"], ["Person"]]


def test_without_an_answer_nothing_is_compared(folder, capsys):
    assert run(folder, write(folder.parent / "new.jsonl", c=[]), "--max-faults", "9") == 1
    said = capsys.readouterr()
    assert "not one photo has an answer of both sides" in said.err
    assert json.loads(said.out.splitlines()[-1])["compared"] == 0


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        *(
            ({"polygon": [ring]}, "a ring of a polygon is not x y x y")
            for ring in ([0.1, 0.1, 0.5, None, 0.5, 0.5], [0.1, 0.1, 0.5], "abcd", [20, 10, 90, 10, 90, 50])
        ),
        ({"holes": [[0.1, 0.1, 0.5]]}, "a ring of a polygon is not x y x y"),
        ({"box": {"topX": 20, "topY": 10, "bottomX": 90, "bottomY": 50}}, "a box is not topX, topY"),
        ({"box": {"topX": None, "topY": 0, "bottomX": 1, "bottomY": 1}}, "a box is not topX, topY"),
        ({"label": ["person"]}, "a label is not text"),
        *(({"score": score}, "a score is not a finite number") for score in ("0.9", None, float("nan"), 10**400)),
        *(
            ({"rle": {"size": [100, 200], "counts": counts}}, "an rle")
            for counts in ([20000], "11", "PPPPPPP0", coco_mask.encode(np.ones((9, 9), np.uint8, order="F"))["counts"].decode())
        ),
        ({"rle": {"size": [100, 200], "counts": "x~~~"}}, "counts are damaged"),
        ({"rle": {"counts": "11"}}, "KeyError('size')"),
    ],
)
def test_invalid_objects_are_reported(folder, capsys, odd, said):
    """In the rows of another program, say: no traceback, and no object that matches nothing."""
    rows = write(folder.parent / "new.jsonl", a=[square(0.1, 0.1) | odd], b=[])
    assert run(folder, rows) == 2
    told = capsys.readouterr().err
    assert "an answer does not follow the contract: " in told
    assert said in told
    assert pictures.main([str(folder), "--preds", str(rows), "--output", str(folder.parent / "drawn")]) == 2
    assert "row 1: not a row of jobs.batch_score" in capsys.readouterr().err


def test_two_rows_of_one_photo_are_refused(folder, capsys):
    """Of files that were put together, say: the second would be compared as if it were the only one."""
    rows = write(folder.parent / "new.jsonl", a=[square(0.1, 0.1)], b=[])
    rows.write_text(rows.read_text() * 2)
    assert run(folder, rows) == 2
    assert "new.jsonl has several rows of a.png" in capsys.readouterr().err


@pytest.mark.parametrize("error", ["not an image", {"message": "not an image"}, None], ids=str)
def test_a_row_with_an_error_is_a_fault(folder, capsys, error):
    """Also as text; null is none."""
    row = {"row_number_per_file": 0, "preds": {"boxes": [square(0.1, 0.1)], "error": error}, "file_name": "a.png"}
    (folder.parent / "new.jsonl").write_text(json.dumps(row))
    run(folder, folder.parent / "new.jsonl")
    assert ("jobs.compare: a.png: not an image" in capsys.readouterr().err) == bool(error)


def test_the_same_rows_agree(folder, capsys):
    assert run(folder, folder.parent / "old.jsonl", "--min-matched", "1", "--min-mask-iou", "1", "--max-score-shift", "0") == 0
    summary = summary_of(capsys)
    assert summary["objects"] == [3, 3]
    assert summary["matched"] == 3
    assert (summary["mask_iou"], summary["box_iou"], summary["missed"], summary["new"]) == (1.0, 1.0, 0, 0)


def test_what_differs(folder, tmp_path, capsys):
    """One is missed, one is new, one has another label, one moved and lost score; the worst photo is first on the page."""
    write(tmp_path / "new.jsonl", a=[square(0.12, 0.1, score=0.7), square(0.6, 0.6, label="dog")], b=[square(0.4, 0.4)])
    page = tmp_path / "deep" / "compare.html"
    assert run(folder, tmp_path / "new.jsonl", "--min-matched", "0.9", "--page", str(page)) == 1
    said = capsys.readouterr()
    assert "matched_share is 0.6667, below 0.9" in said.err
    summary = json.loads(said.out.splitlines()[-1])
    assert (summary["matched"], summary["missed"], summary["new"]) == (2, 1, 1)
    assert summary["score_shift"] == pytest.approx(-0.1)
    assert summary["box_iou"] == pytest.approx((1 + 9 / 11) / 2, abs=1e-3)
    text = page.read_text()
    assert text.index("a.png") < text.index("b.png")
    assert text.count("data:image/jpeg;base64,") == 4
    assert "http" not in text


def test_a_service_and_its_faults(folder, capsys):
    """A URL is asked photo by photo, with the threshold; a photo without an answer is a fault, which CI sees."""
    with stub_service(answer={"boxes": [square(0.1, 0.1)]}) as stub:
        assert run(folder, stub.url) == 0
        assert stub.asked[0][2] == {"score_threshold": 0.3}
    summary = summary_of(capsys)
    assert (summary["objects"], summary["matched"]) == ([3, 2], 1)
    assert summary["median_ms"][0] is None
    assert summary["median_ms"][1] > 0
    with stub_service(statuses=[422], answer={"boxes": []}) as stub:
        assert run(folder, stub.url) == 1
    assert "answers missing: 1; " in capsys.readouterr().err


@pytest.mark.parametrize(("second", "said"), [("nope", "nope"), ("nope.jsonl", "nope.jsonl")])
def test_invalid_sides_are_refused(folder, second, said, capsys):
    assert run(folder, second) == 2
    assert said in capsys.readouterr().err


def test_masks_of_another_size_are_a_fault(folder, capsys):
    """Rows of smaller copies of the photos: no object would match."""
    rle = {"size": [48, 64], "counts": coco_mask.encode(np.ones((48, 64), np.uint8, order="F"))["counts"].decode()}
    rows = write(folder.parent / "new.jsonl", a=[square(0.1, 0.1) | {"rle": rle}], b=[])
    run(folder, rows)
    captured = capsys.readouterr()
    assert "a.png: its masks have the size [48, 64] (height, width), the photo has [100, 200]" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["faults"] == [0, 1]


def test_the_best_overlap_matches_first():
    """Each object once; of two candidates the nearer one, whatever their scores."""
    first = [item(0.1, 0.1), item(0.15, 0.1)]
    pairs = match(first, [item(0.14, 0.1, score=0.4)], (100, 100), 0.5)
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 0)]
    assert match(first, [item(0.6, 0.6)], (100, 100), 0.5) == match(first, [item(0.6, 0.6)], (100, 100), 0.0) == []
    assert match([], first, (100, 100), 0.5) == []


def test_agreement():
    """1 where both found nothing, and where all is the same; 0 where nothing matches."""
    assert agreement(0, 0, []) == 1.0
    assert agreement(1, 1, []) == 0.0
    assert agreement(1, 1, match([item(0.1, 0.1)], [item(0.1, 0.1)], (50, 50), 0.5)) == 1.0


def test_our_engine_beside_mmdet(tmp_path, capsys):
    """Exact masks in fp32 are mmdet's; each model says its own precision."""
    (tmp_path / "photo.jpg").write_bytes(Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).read_bytes())
    sides = ["mmdet:rtmdet-ins_nano_person", "rtmdet-ins_nano_person@fp32"]
    thresholds = ["--engine", "torch", "--min-matched", "1", "--min-mask-iou", "0.99", "--max-score-shift", "0.001"]
    assert compare.main([str(tmp_path), *sides, "--mask-format", "rle", *thresholds]) == 0
    assert summary_of(capsys)["objects"] == [1, 1]


def test_a_photo_that_cannot_be_read_ends_no_comparison(folder, tmp_path, capsys, monkeypatch):
    """It is a fault; nor does one that is gone when the page is written."""
    gone = compare.Difference(0.5, "c.png", folder / "c.png", ([], []), "")
    monkeypatch.setattr(compare, "page", lambda *parts: page(*parts[:3], [gone, *parts[3]]))
    unreadable = OSError(13, "Permission denied", "b.png")
    side = compare.side_of(str(folder.parent / "old.jsonl"), compare.SideOptions())

    def second(name, photo):
        if name == "b.png":
            raise unreadable
        return side(name, photo)

    sides = iter((side, second))
    monkeypatch.setattr(compare, "side_of", lambda *_: next(sides))
    assert run(folder, "second", "--page", str(tmp_path / "new" / "page.html")) == 1
    assert summary_of(capsys)["faults"] == [0, 1]
    assert "c.png: not a readable photo" in (tmp_path / "new" / "page.html").read_text()
