"""Predictions by the serving code: the pipeline in this process against mmdet's own way on the same photo."""

import json

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from jobs.datasets import AnnotationsError, read_annotations
from jobs.predictions import predict_with_mmdet
from jobs.predictions_served import predict_with_engine, predict_with_service
from pipeline.checkpoints import load_checkpoint
from pipeline.engines import EngineOptions
from pipeline.zoo import locate
from tests.pipeline.mask_examples import decode_rle

MODEL = "rtmdet-ins_nano_person"


@pytest.fixture
def annotations(tmp_path):
    """One photo as a COCO data set of one picture; its annotation does not matter here."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        photo.save(tmp_path / "photo.png")
        width, height = photo.size
    truth = {
        "images": [{"id": 7, "file_name": "photo.png", "width": width, "height": height}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 9, 9],
                "area": 81,
                "iscrowd": 0,
                "segmentation": [[0, 0, 9, 0, 9, 9]],
            }
        ],
        "categories": [{"id": 3, "name": "person"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return read_annotations(tmp_path / "truth.json", tmp_path, tmp_path)


def clipped(result):
    """An x y w h box cut at its image; mmdet's reach to the edge of the padded square."""
    height, width = result["segmentation"]["size"]
    x, y, w, h = result["bbox"]
    return [x, y, min(x + w, width) - x, min(y + h, height) - y]


def test_engine_agrees_with_mmdet(annotations):
    """Same boxes, scores and masks for everything that scores above 0.3, in fp32."""
    ours = predict_with_engine(MODEL, EngineOptions("openvino", "fp32"), annotations)
    theirs = predict_with_mmdet(load_checkpoint(locate(MODEL)), annotations)
    ours, theirs = ([one for one in found if one["score"] > 0.3] for found in (ours, theirs))
    assert len(ours) == len(theirs) >= 1
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["category_id"] == other["category_id"] == 3
        assert mine["score"] == pytest.approx(other["score"], abs=0.01)
        np.testing.assert_allclose(mine["bbox"], clipped(other), atol=1.0)
        a, b = (decode_rle(one["segmentation"]) > 0 for one in (mine, other))
        assert (a & b).sum() / (a | b).sum() > 0.98


def test_a_silent_service_is_a_clear_error(annotations):
    """Nobody listens: the message names the URL."""
    with pytest.raises(AnnotationsError, match=r"127\.0\.0\.1:9 does not answer"):
        predict_with_service("http://127.0.0.1:9", annotations)
