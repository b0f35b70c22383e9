"""The batch notebooks of AzureML, call by call: a folder, and a CSV of base64, scored by the job and read as they read it."""

import ast
import base64
import json

import pandas as pd
import pytest

from jobs import batch_score

COLUMNS = ["row_number_per_file", "preds", "file_name"]


@pytest.fixture
def folder(photos, tmp_path):
    """`odFridgeObjectsMask/images` of the notebook, with photos that the embedded model knows."""
    images = tmp_path / "odFridgeObjectsMask" / "images"
    images.mkdir(parents=True)
    for number, photo in enumerate(photos[:4], start=1):
        (images / f"{number}.jpg").write_bytes(photo)
    return images


def score(service, source, output, *more):
    return batch_score.main([str(source), "--url", service.url, "--output", str(output), *more])


def test_a_folder_of_images(service, folder, tmp_path):
    """Input(type=URI_FOLDER), output_file_name="predictions.csv", read without a header."""
    assert score(service, folder, tmp_path / "predictions.csv") == 0
    score_df = pd.read_csv(tmp_path / "predictions.csv", header=None, names=COLUMNS)
    assert sorted(score_df["file_name"]) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    for preds in score_df["preds"]:
        assert ast.literal_eval(preds) == json.loads(preds)  # people read it either way
        assert json.loads(preds)["boxes"][0]["label"] == "person"


def test_a_csv_of_base64(service, folder, tmp_path):
    """Input(type=URI_FILE): the notebook's own lines make the CSV, line breaks in its cells and all."""
    image_list = [base64.encodebytes((folder / f"{number}.jpg").read_bytes()).decode("utf-8") for number in (1, 2, 3)]
    pd.DataFrame(image_list, columns=["image"]).to_csv(tmp_path / "image_list.csv", index=False, header=True)
    assert score(service, tmp_path / "image_list.csv", tmp_path / "out" / "predictions.csv") == 0
    score_df = pd.read_csv(tmp_path / "out" / "predictions.csv", header=None, names=COLUMNS)
    assert sorted(score_df["row_number_per_file"]) == [0, 1, 2]
    assert set(score_df["file_name"]) == {"image_list.csv"}
    assert all(json.loads(preds)["boxes"] for preds in score_df["preds"])


def test_the_older_notebook(service, folder, tmp_path):
    """Rows of `filename` and `boxes`, looked through for one photo."""
    assert score(service, folder, tmp_path / "predictions", "--format", "boxes") == 0
    with (tmp_path / "predictions").open() as lines:
        found = {row["filename"]: row["boxes"] for row in map(json.loads, lines)}
    assert len(found["1.jpg"][0]["polygon"][0]) > 20


def test_the_training_set_as_input(service, folder, tmp_path):
    """The MLTable folder of the fine-tuning notebook: photos are found by the end of their datastore URL."""
    root = "azureml://subscriptions/x/resourcegroups/y/workspaces/z/datastores/workspaceblobstore/paths/LocalUpload/abc"
    rows = [{"image_url": f"{root}/odFridgeObjectsMask/images/{number}.jpg", "label": []} for number in (1, 2)]
    table = folder.parent / "training-mltable-folder"
    table.mkdir()
    (table / "train_annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table / "MLTable").write_text("paths:\n  - file: ./train_annotations.jsonl\ntransformations:\n  - read_json_lines: {}\n")
    (table / "images").symlink_to(folder)
    assert score(service, table, tmp_path / "preds.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "preds.jsonl").read_text().splitlines()]
    assert {(line["file_name"], line["row_number_per_file"]) for line in lines} == {
        ("train_annotations.jsonl", n) for n in (0, 1)
    }
