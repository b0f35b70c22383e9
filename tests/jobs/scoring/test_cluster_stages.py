"""The stages of a batch on a cluster, in this process: rows in, rows out, whatever is wrong with one of them."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from jobs.scoring import cluster_stages
from jobs.scoring.cluster_stages import Detect, Load, Outline
from pipeline.inference.engine import EngineOptions
from pipeline.model.zoo import read_header
from pipeline.types import DetectOptions, OutlineOptions

MODEL = "rtmdet-ins_nano_person"


@pytest.fixture
def counted(monkeypatch):
    """Stand-in for the Tally actor."""
    calls = []
    monkeypatch.setattr(cluster_stages, "count", lambda _, errors, done: calls.append((len(errors), done)))
    return calls


@pytest.fixture
def load(tmp_path):
    header = read_header(MODEL, tmp_path)
    stage = Load(header.input_size)
    yield stage
    stage._decoders.close()


def photo(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(buffer, kind)
    return buffer.getvalue()


def batch_of(*images):
    column = np.empty(len(images), object)
    column[:] = images
    return {"id": np.array([f"{n}" for n in range(len(images))]), "image": column}


def test_images_of_every_kind(load, counted, tmp_path):
    """Bytes, a file, base64, and what is no image: each has its preds, in its place."""
    (tmp_path / "a.jpg").write_bytes(photo())
    (tmp_path / "odd.jpg").write_bytes(photo())
    images = [
        photo(),
        str(tmp_path / "a.jpg"),
        base64.b64encode(photo()).decode(),  # begins with a slash, as a path does
        f"file://{tmp_path}/%6Fdd.jpg",
        b"no image",
        str(tmp_path / "gone.jpg"),
        "unreadable:The cell is empty.",
        None,
        "http://127.0.0.1/x.jpg",
    ]
    loaded = load(batch_of(*images))
    assert set(loaded) == {"id", "work"}
    detected = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(loaded)
    header = read_header(MODEL, tmp_path)
    rows = Outline(header.classes, OutlineOptions(), None)(detected)
    assert rows["id"].tolist() == [str(n) for n in range(len(images))]
    preds = [json.loads(text) for text in rows["preds"]]
    assert ["error" in found for found in preds[:4]] == [False] * 4, preds[:4]
    assert all(found["boxes"] for found in preds[:4])
    codes = [found["error"]["code"] for found in preds[4:]]
    assert codes == ["unsupported_image_format", *["image_not_readable"] * 3, "url_refused"]
    assert preds[6]["error"]["message"] == "The cell is empty."
    assert counted == [(5, 9)]


def test_a_batch_of_bad_photos_alone(load, counted):
    """The network is not asked."""
    rows = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(load(batch_of(b"x", b"y")))
    assert len(rows["work"]) == 2
    assert not counted
