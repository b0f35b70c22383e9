"""The stages of a batch on a cluster, in this process: rows in, rows out, whatever is wrong with one of them."""

import base64
import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from jobs.scoring import cluster_stages
from jobs.scoring.cluster_stages import Detect, Load, Outline, as_listed
from jobs.scoring.tiles import Grid
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
    ids = np.array([f"{n}" for n in range(len(images))])
    return {"id": ids, "file_name": ids, "row_number_per_file": np.zeros(len(images), np.int64), "image": column}


def test_images_of_every_kind(load, counted, tmp_path):
    """Bytes, a file, base64, and what is no image: each has its preds, in its place."""
    (tmp_path / "a.jpg").write_bytes(photo())
    (tmp_path / "odd.jpg").write_bytes(photo())
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    images = [
        photo(),
        str(tmp_path / "a.jpg"),
        base64.b64encode(photo()).decode(),  # begins with a slash, as a path does
        f"file://{tmp_path}/%6Fdd.jpg",
        b"no image",
        str(tmp_path / "gone.jpg"),
        "unreadable:The cell is empty.",
        str(tmp_path / "pipe"),
        None,
        float("nan"),
        "http://127.0.0.1/x.jpg",
    ]
    loaded = load(batch_of(*images))
    assert set(loaded) == {"id", "file_name", "row_number_per_file", "work"}
    detected = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(loaded)
    header = read_header(MODEL, tmp_path)
    rows = Outline(header.classes, OutlineOptions(), None)(detected)
    assert rows["id"].tolist() == [str(n) for n in range(len(images))]
    preds = [json.loads(text) for text in rows["preds"]]
    assert ["error" in found for found in preds[:4]] == [False] * 4, preds[:4]
    assert all(found["boxes"] for found in preds[:4])
    codes = [found["error"]["code"] for found in preds[4:]]
    assert codes == ["unsupported_image_format", *["image_not_readable"] * 5, "url_refused"]
    assert preds[6]["error"]["message"] == "The cell is empty."
    assert preds[8]["error"]["message"] == preds[9]["error"]["message"] == "There is no image in this row."
    assert counted == [(7, 11)]


def test_a_batch_of_bad_photos_alone(load, counted):
    """The network is not asked."""
    rows = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(load(batch_of(b"x", b"y")))
    assert len(rows["work"]) == 2
    assert not counted


def test_tiles(counted, tmp_path):
    """The whole photo and its tiles go through the network; the answer is in fractions of the photo."""
    header = read_header(MODEL, tmp_path)
    stage = Load(header.input_size, Grid(2, 0.2, header.input_size))
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), (90, 120, 60)).save(buffer, "JPEG")
    loaded = stage(batch_of(buffer.getvalue(), b"no image"))
    stage._decoders.close()
    parts = pickle.loads(loaded["work"][0]).parts
    assert len(parts) == 1 + 2  # along the long side; the short one fits one tile
    detected = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(loaded)
    preds = [json.loads(text) for text in Outline(header.classes, OutlineOptions(), None)(detected)["preds"]]
    assert preds[1]["error"]["code"] == "unsupported_image_format"
    assert preds[0]["boxes"]
    assert all(0 <= value <= 1 for found in preds[0]["boxes"] for value in found["box"].values())
    assert counted == [(1, 2)]


@pytest.mark.parametrize(("white_level", "brightness"), [(65535, 8), (4095, 128)])
def test_white_level(tmp_path, white_level, brightness):
    """A 12-bit camera's picture in 16-bit files is as bright as it was seen."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 64), 2048, np.uint16)).save(buffer, "PNG")
    stage = Load(read_header(MODEL, tmp_path).input_size, white_level=white_level)
    (work,) = stage(batch_of(buffer.getvalue()))["work"]
    stage._decoders.close()
    assert pickle.loads(work).pixels.mean() == pytest.approx(brightness, abs=1)


def test_rows_of_a_parquet_source():
    """Get the list's columns; ids keep their type, since Ray Data compares them with those that are done."""
    rows = as_listed({"id": np.array([7, 8]), "image_url": np.array(["x", None], object)})
    assert {name: cells.tolist() for name, cells in rows.items()} == {
        "id": [7, 8],
        "file_name": ["7", "8"],
        "row_number_per_file": [0, 0],
        "image": ["x", None],
    }
    assert as_listed(rows) is rows
