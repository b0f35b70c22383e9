"""What is left out is said alike by every command, and refused where that is asked for."""

from __future__ import annotations

import json

import pytest

from jobs import evaluate, finetune, pictures
from jobs.annotations.coco_objects import BOX_ALONE

LEFT_OUT = f"left out: 2 {BOX_ALONE} (first: annotation 101, 1.png)"

SMALL = ["--image-size", "64", "--steps", "1", "--workers", "0", "--batch-size", "2"]


@pytest.fixture
def with_boxes_alone(tiny_coco, tmp_path):
    """The tiny data set with two objects more that have no outline."""
    document = json.loads((tiny_coco / "coco.json").read_text())
    boxes = [{"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]} for number in (101, 102)]
    document["annotations"] += boxes
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document))
    return path, str(tiny_coco / "photos")


def run(command, with_boxes_alone, tmp_path, *more):
    path, photos = with_boxes_alone
    (tmp_path / "results.json").write_text("[]")
    arguments = {
        "finetune": ["--train", path, "--train-images", photos, "--work-dir", tmp_path / "run", *SMALL],
        "evaluate": ["--annotations", path, "--images", photos, "--results", tmp_path / "results.json"],
        "pictures": [photos, "--annotations", path, "--output", tmp_path / "out", "--most", "1"],
    }
    main = {"finetune": finetune.main, "evaluate": evaluate.main, "pictures": pictures.main}[command]
    return main([*map(str, arguments[command]), *more])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid")
@pytest.mark.parametrize("command", ["finetune", "evaluate", "pictures"])
def test_every_command_reports_what_it_leaves_out(command, with_boxes_alone, tmp_path, capsys):
    assert run(command, with_boxes_alone, tmp_path) == 0
    assert LEFT_OUT in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", ["finetune", "evaluate", "pictures"])
def test_strict_refuses_it(command, with_boxes_alone, tmp_path, capsys):
    """With the same message and exit status 2."""
    assert run(command, with_boxes_alone, tmp_path, "--strict") == 2
    assert f"jobs.{command}: val.json: {LEFT_OUT}; --strict allows none." in capsys.readouterr().err


def test_the_json_of_evaluate_reports_what_was_left_out(with_boxes_alone, tmp_path, capsys):
    """In the last line, for programs."""
    run("evaluate", with_boxes_alone, tmp_path)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["annotations"]
    assert told["left_out"] == {BOX_ALONE: {"count": 2, "first": "annotation 101, 1.png"}}
    assert (told["photos"], told["objects"]) == (6, 5)
