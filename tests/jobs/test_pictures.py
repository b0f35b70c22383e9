"""Pictures of results: selection, order, and tags."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs import pictures
from jobs.annotations.datasets import read_annotations
from jobs.sheets import sheets_of_comparison
from tests.support.full_disk import files_no_larger_than
from tests.support.rectangles import SIZE, document, thing

FOUND = {
    "box": {"topX": 0.25, "topY": 0.25, "bottomX": 0.75, "bottomY": 0.75},
    "label": "ball",
    "score": 0.9,
    "polygon": [[0.25, 0.25, 0.75, 0.25, 0.75, 0.75, 0.25, 0.75]],
}


@pytest.fixture
def folder(tmp_path):
    """Three grey photos of 100 x 100, one of them deeper."""
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c d.png"):
        Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(photos / name)
    return photos


def write_preds(path, *rows):
    lines = [{"row_number_per_file": 0, "preds": preds, "file_name": name} for name, preds in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def annotations_of(tmp_path, folder, *things):
    """Of a.png, b.png and deep/c d.png, numbered from 1."""
    coco = document(*things, images=3, names=("cat", "dog"))
    for image, name in zip(coco["images"], ("a.png", "b.png", "deep/c d.png"), strict=True):
        image["file_name"] = name
    path = tmp_path / "val.json"
    path.write_text(json.dumps(coco))
    return path, read_annotations(path, folder, tmp_path / "scratch")


def is_tinted(path, at_xy=(50, 60)):
    return tuple(np.asarray(Image.open(path))[at_xy[::-1]]) != (90, 90, 90)


def test_draws_what_batch_score_wrote(folder, tmp_path, capsys):
    """A picture for each scored photo; errors and URLs are counted, not drawn."""
    bad = {"boxes": [], "error": {"code": "image_not_decodable", "message": "no"}}
    rows = [
        ("deep/c d.png", {"boxes": [FOUND]}),
        ("a.png", bad),
        ("https://x.example/y.jpg", {"boxes": []}),
        ("b.png", {"boxes": []}),
    ]
    preds, output = write_preds(tmp_path / "preds.jsonl", *rows), tmp_path / "new" / "pictures"
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["00001-deep_c_d.jpg", "00002-b.jpg"]
    assert is_tinted(output / "00001-deep_c_d.jpg")
    assert not is_tinted(output / "00002-b.jpg")
    assert "2 of 2 pictures written" in (said := capsys.readouterr().out)
    assert "earlier run" not in said
    lines = preds.read_text().splitlines()
    preds.write_text("\n".join(lines[::-1]))  # as an editor or a script leaves it: the last line does not end
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(output)]) == 0
    assert "2 of 2 pictures written" in (said := capsys.readouterr().out)
    assert "2 other pictures are in there, such as of an earlier run" in said


def test_a_running_batch_is_drawn_as_far_as_it_is(folder, tmp_path):
    """Its last line may be half there."""
    preds = write_preds(tmp_path / "preds.jsonl", ("a.png", {"boxes": [FOUND]}))
    with preds.open("a") as lines:
        lines.write('{"row_number_per_file": 0, "pre')
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00001-a.jpg"]


def test_draws_annotations_alone(tiny_coco, tmp_path):
    """What fine-tuning would learn from, before it does, of either kind of file; `--most` draws the first."""
    for name in ("coco.json", "azureml.jsonl"):
        output = tmp_path / name
        arguments = [str(tiny_coco / "photos"), "--annotations", str(tiny_coco / name), "--most", "2", "--output", str(output)]
        assert pictures.main(arguments) == 0
        assert sorted(path.name for path in output.iterdir()) == ["00001-1.jpg", "00002-2.jpg"]


def test_the_worst_comes_first(folder, tmp_path):
    """By F1: a photo that is right in all, one with a miss and a false find, one half right."""
    cat, dog = thing(0, 0, 40, 40), thing(50, 50, 40, 40, category_id=2)
    truth = (cat, cat | {"image_id": 2}, dog | {"image_id": 2}, cat | {"image_id": 3})
    _, annotations = annotations_of(tmp_path, folder, *truth)
    found = [
        thing(0, 0, 40, 40, score=0.9),
        thing(0, 0, 40, 40, image_id=2, score=0.4),
        thing(50, 50, 40, 40, image_id=2, score=0.8),  # a dog, called cat
        thing(60, 60, 30, 30, image_id=3, score=0.7),
        thing(0, 0, 40, 40, image_id=3, score=0.2),  # below the threshold
    ]
    sheets = sheets_of_comparison(annotations, found, score_threshold=0.3)
    assert [sheet.name for sheet in sheets] == ["deep/c d.png", "b.png", "a.png"]
    left, right = sheets[1].panels
    assert left.tags == ["cat", "dog: missed"]
    assert right.tags == ["cat 80%: false", "cat 40%"]
    assert right.title == "found: 2, of them 1 false; 1 missed; F1 0.50"
    assert sheets[0].panels[1].title.endswith("F1 0.00")


def test_crowds_are_neither_missed_nor_false(folder, tmp_path):
    """As in AzureML's metrics."""
    _, annotations = annotations_of(tmp_path, folder, thing(50, 50, 40, 40, iscrowd=1))
    sheets = sheets_of_comparison(annotations, [thing(55, 55, 10, 10, score=0.8)], score_threshold=0.3)
    (left, right) = next(sheet for sheet in sheets if sheet.name == "a.png").panels
    assert (left.tags, right.tags) == (["cat (crowd)"], ["cat 80%"])
    assert right.title.endswith("0 missed; F1 1.00")


def test_annotations_are_left_and_predictions_right(folder, tmp_path):
    """Two panels of the photo, each with its own objects; polygons and run lengths alike; large photos are scaled down."""
    polygon = thing(20, 20, 60, 60) | {"segmentation": [[20, 20, 80, 20, 80, 80, 20, 80]]}
    path, _ = annotations_of(tmp_path, folder, polygon)
    results, output = tmp_path / "results.json", tmp_path / "out"
    results.write_text(json.dumps([thing(20, 20, 60, 60, image_id=2, score=0.8)]))
    arguments = ["--annotations", str(path), "--results", str(results), "--output", str(output), "--longest-side-px", "50"]
    assert pictures.main([str(folder), *arguments]) == 0
    first, second = (np.asarray(Image.open(path)).astype(int) for path in sorted(output.iterdir())[:2])
    assert first.shape[1] == 100
    bar = first.shape[0] - 50
    middles = [[tuple(picture[bar + 25, x]) for x in (25, 75)] for picture in (first, second)]
    tinted = [[max(np.abs(np.array(pixel) - 90)) > 15 for pixel in row] for row in middles]
    assert tinted == [[True, False], [False, True]]


def test_a_photo_that_cannot_be_read_loses_no_other(folder, tmp_path, capsys):
    """It is named, and the exit status says that something is missing."""
    (folder / "a.png").write_bytes(b"no photo")
    preds = write_preds(tmp_path / "preds.jsonl", ("a.png", {"boxes": []}), ("b.png", {"boxes": [FOUND]}))
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00002-b.jpg"]
    assert "a.png: not a readable photo (The data is not an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense", "line 1: not a line of jobs.batch_score"),
        (b'{"file_name": "a.png"}', "line 1: not a line of jobs.batch_score"),
        (b"\xff\xfe", "line 1"),
    ],
    ids=["no JSON", "no predictions", "no text"],
)
def test_files_not_of_batch_score_are_refused(folder, tmp_path, capsys, line, said):
    preds = tmp_path / "preds.jsonl"
    preds.write_bytes(line + b"\n")
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_results_need_annotations(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pictures.main([str(folder), "--preds", "x", "--results", "y", "--output", str(tmp_path / "out")])
    assert "--results are drawn beside --annotations" in capsys.readouterr().err


def test_long_names_and_deep_folders(folder, tmp_path):
    """A picture's name is cut to what file systems allow."""
    deep = folder / ("d" * 200)
    deep.mkdir()
    (folder / "a.png").rename(deep / ("\u00e9" * 120 + ".png"))
    preds = write_preds(tmp_path / "p.jsonl", (f"{'d' * 200}/{chr(0xE9) * 120}.png", {"boxes": [FOUND]}))
    assert pictures.main([str(folder), "--preds", str(preds), "--output", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").iterdir()
    assert is_tinted(picture)


def test_a_full_disk_leaves_no_half_picture(folder, tmp_path, capsys):
    """Pillow's JPEG writer does not see that the disk took only a part."""
    preds = write_preds(tmp_path / "p.jsonl", ("a.png", {"boxes": [FOUND]}))
    with files_no_larger_than(500):
        assert pictures.main([str(folder), "--preds", str(preds), "--output", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out/00001-a.jpg: " in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
