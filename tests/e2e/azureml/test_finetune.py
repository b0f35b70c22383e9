"""The fine-tuning and evaluation notebooks of AzureML, step by step, with a made-up set like the fridge photos: what they upload goes
in as it is (MLTable folders, JSON lines with datastore URLs), and a model comes out that the evaluation finds something with."""

import json

import cv2
import numpy as np
import pytest

from jobs import evaluate, finetune

LABELS = {"can": (40, 40, 200), "carton": (60, 170, 60), "milk_bottle": (220, 220, 220), "water_bottle": (200, 120, 40)}
URL = "azureml://subscriptions/x/resourcegroups/y/workspaces/z/datastores/workspaceblobstore/paths/LocalUpload/abc"
SIZE_HW = (240, 320)


def photo_of_the_fridge(random):
    """Two or three coloured shapes on a shelf, and their outlines, (K, 2) x y, with labels."""
    pixels = random.integers(90, 130, (*SIZE_HW, 3), dtype=np.uint8)
    objects = []
    for place, label in enumerate(random.permutation(list(LABELS))[: random.integers(2, 4)]):
        centre, axes = (
            (60 + 100 * place, int(random.integers(90, 150))),
            (int(random.integers(28, 40)), int(random.integers(40, 70))),
        )
        outline = cv2.ellipse2Poly(centre, axes, 0, 0, 360, 15)
        cv2.fillPoly(pixels, [outline], LABELS[label])
        objects.append((label, outline.astype(float)))
    return pixels, objects


@pytest.fixture(scope="module")
def fridge(tmp_path_factory):
    """The notebook's tree: `odFridgeObjectsMask/images`, and an MLTable folder each for training and validation."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images = root / "odFridgeObjectsMask" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(1, 41):
        pixels, objects = photo_of_the_fridge(random)
        cv2.imwrite(str(images / f"{number}.jpg"), pixels)
        details = {"format": "jpg", "width": f"{SIZE_HW[1]}px", "height": f"{SIZE_HW[0]}px"}
        labels = [
            {"label": label, "bbox": "null", "isCrowd": "false", "polygon": [(outline / SIZE_HW[::-1]).ravel().tolist()]}
            for label, outline in objects
        ]
        url = f"{URL}/odFridgeObjectsMask/images/{number}.jpg"
        rows.append({"image_url": url, "image_details": details, "label": labels})
    for name, part in (("training", rows[:32]), ("validation", rows[32:])):
        folder = root / f"{name}-mltable-folder"
        folder.mkdir()
        (folder / f"{name}_annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        (folder / "MLTable").write_text(
            f"paths:\n  - file: ./{name}_annotations.jsonl\ntransformations:\n  - read_json_lines:\n      encoding: utf8\n"
            "  - convert_columns:\n      - columns: image_url\n        column_type: stream_info\n"
        )
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tune_and_evaluate(fridge, tmp_path, capsys):
    """MLTables in, a checkpoint out; then AzureML's metrics at AzureML's thresholds."""
    images = str(fridge / "odFridgeObjectsMask" / "images")
    trained = finetune.main(
        [
            *("--train", str(fridge / "training-mltable-folder"), "--train-images", images),
            *("--val", str(fridge / "validation-mltable-folder"), "--val-images", images, "--work-dir", str(tmp_path / "run")),
            *(
                "--init-weights",
                "rtmdet-ins_nano_person",
                "--image-size",
                "320",
                "--steps",
                "60",
                "--batch-size",
                "4",
                "--lr",
                "2e-3",
            ),
            *("--warmup", "2", "--val-every", "0", "--mosaic", "0", "--precision", "fp32", "--workers", "0"),
        ]
    )
    assert trained == 0
    capsys.readouterr()
    measured = evaluate.main(
        [
            *("--annotations", str(fridge / "validation-mltable-folder"), "--images", images, "--engine", "openvino"),
            *("--checkpoint", str(tmp_path / "run" / "final.safetensors"), "--plot", str(tmp_path / "confusion.png")),
        ]
    )
    assert measured == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["azureml"]
    assert (metrics["score_threshold"], metrics["iou_threshold"]) == (0.3, 0.5)
    assert sorted(metrics["labels"]) == sorted(LABELS)
    assert metrics["mask"]["image_level"]["recall"] is not None
    assert (tmp_path / "confusion.png").is_file()
