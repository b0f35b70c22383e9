"""Predictions by the serving code: the pipeline in this process against mmdet's own way on the same photo."""

import json
from functools import partial

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.evaluation.predictions import predict_with_mmdet
from jobs.evaluation.predictions_served import predict_with_engine, predict_with_service
from jobs.training.loop import validation
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate
from tests.support.mask_examples import decode_rle
from tests.support.stub_service import stub_service

MODEL = "rtmdet-ins_nano_person"

pytestmark = pytest.mark.usefixtures("pauses")


@pytest.fixture
def annotations(tmp_path):
    """One photo as a COCO data set of one picture; its annotation does not matter here."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        photo.save(tmp_path / "photo.png")
        width, height = photo.size
    truth = {
        "images": [{"id": 7, "file_name": "photo.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
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


RLE = {"size": [600, 512], "counts": "00"}
ANSWER = {
    "boxes": [{"box": dict.fromkeys(("topX", "topY", "bottomX", "bottomY"), 0.5), "label": "person", "score": 0.9, "rle": RLE}]
}


def test_a_busy_service_is_waited_for(annotations, pauses):
    """A 503 and a 429 during a run are retried; the key is sent."""
    with stub_service(statuses=[503, 429], answer=ANSWER, key="secret") as stub:
        (found,) = predict_with_service(stub.url, annotations, key="secret")
    assert found["image_id"] == 7
    assert [pause >= 1 for pause in pauses] == [True, True]


def test_a_refused_photo_is_named(annotations):
    with stub_service(statuses=[422]) as stub, pytest.raises(AnnotationsError, match=r"photo\.png: the service answered 422"):
        predict_with_service(stub.url, annotations)


@pytest.mark.parametrize(
    "predict",
    [
        pytest.param(partial(predict_with_mmdet, load_checkpoint(locate(MODEL))), id="mmdet"),
        pytest.param(partial(predict_with_engine, MODEL, EngineOptions("openvino", "fp32")), id="openvino"),
    ],
)
def test_a_broken_photo_is_named(annotations, predict):
    """By both decoders, mmdet's and the engine's."""
    (annotations.images / "photo.png").write_bytes(b"\x89PNG, and no more")
    with pytest.raises(AnnotationsError, match=r"photo\.png"):
        predict(annotations)


def _while_training(annotations, white_level):
    return validation.predict(
        load_checkpoint(locate(MODEL)).network(), annotations.document(), annotations.images, 320, white_level=white_level
    )


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(partial(predict_with_mmdet, load_checkpoint(locate(MODEL)), input_size_px=320), id="mmdet"),
        pytest.param(partial(predict_with_engine, MODEL, EngineOptions("torch", "fp32")), id="engine"),
        pytest.param(_while_training, id="training"),
    ],
)
def test_white_level_is_that_of_the_photos(annotations, measure):
    """In a frame of 12 bits that is read as one of 16, the person is hard to see."""
    with Image.open(annotations.images / "photo.png") as photo:
        frame = np.asarray(photo.convert("L"), np.uint16) * 16
    Image.fromarray(frame).save(annotations.images / "photo.png")
    assert max(one["score"] for one in measure(annotations, white_level=65535)) < 0.7  # 0.86 in full light


def test_a_silent_service_is_a_clear_error(annotations):
    """Without a connection, the message names the URL."""
    with pytest.raises(AnnotationsError, match=r"127\.0\.0\.1:9 does not answer"):
        predict_with_service("http://127.0.0.1:9", annotations)


def test_labels_that_a_service_lacks_are_reported(annotations, capsys):
    """As of a checkpoint; before the first photo is scored."""
    with stub_service(answer=ANSWER, classes=("person", "zebra")) as stub:
        predict_with_service(stub.url, annotations)
    assert "not counted: zebra" in capsys.readouterr().err
    with stub_service(classes=("zebra",)) as stub, pytest.raises(AnnotationsError, match="none in common"):
        predict_with_service(stub.url, annotations)
    assert not stub.asked


def test_a_service_of_another_kind_is_refused(annotations):
    """AzureML's endpoint knows no run lengths."""
    answer = {"boxes": [{"box": {"topX": 0.1}, "label": "person", "score": 0.9, "polygon": []}]}
    with stub_service(answer=answer) as stub, pytest.raises(AnnotationsError, match="does not answer with masks as run lengths"):
        predict_with_service(stub.url, annotations)
