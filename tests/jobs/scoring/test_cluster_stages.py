"""The stages of a batch on a cluster, in this process: rows in, rows out, whatever is wrong with one of them."""

import base64
import errno
import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from jobs.scoring import cluster_images, cluster_stages
from jobs.scoring.cluster_stages import Detect, Load, Outline, Tally, as_listed
from jobs.scoring.tables import InputsError, read_file
from jobs.scoring.tiles import Grid
from pipeline.errors import DecodersUnavailable, EngineLost
from pipeline.inference.engine import EngineOptions
from pipeline.model.zoo import read_header
from pipeline.types import DetectOptions, OutlineOptions

MODEL = "rtmdet-ins_nano_person"


@pytest.fixture
def counted(monkeypatch):
    """Stand-in for the Tally actor."""
    calls = []
    monkeypatch.setattr(cluster_stages, "count", lambda _, done, errors, faults: calls.append((done, len(errors), len(faults))))
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
    assert counted == [(11, 7, 0)]


def test_a_batch_of_bad_photos_alone(load, counted):
    """The network is not asked."""
    rows = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(load(batch_of(b"x", b"y")))
    assert len(rows["work"]) == 2
    assert not counted


@pytest.fixture
def no_pauses(monkeypatch):
    """Retries at once."""
    monkeypatch.setattr(cluster_images, "pauses", lambda count: iter([0.0] * count))


def scored(loaded):
    """The preds of a batch by id."""
    detected = Detect(MODEL, EngineOptions("simulated"), DetectOptions())(loaded)
    rows = Outline(("person",), OutlineOptions(), None)(detected)
    return dict(zip(rows["id"].tolist(), map(json.loads, rows["preds"]), strict=True))


class Throttled(Exception):
    """As stores behind fsspec raise their own types."""


FAULTS = {
    "I/O error": OSError(errno.EIO, "Input/output error"),
    "too many open files": OSError(errno.EMFILE, "Too many open files"),
    "S3 without an answer": OSError("When reading information for key 'a.jpg': AWS Error NETWORK_CONNECTION"),
    "a store's own": Throttled("slow down"),
}


def test_a_missing_file_whose_name_is_not_utf8(load, counted, tmp_path):
    """Its name is in the error, which is JSON."""
    (tmp_path / "other.jpg").write_bytes(photo())
    preds = scored(load(batch_of(f"file://{tmp_path}/caf%E9.jpg")))
    assert preds["0"]["error"]["code"] == "image_not_readable"
    assert r"caf\udce9.jpg" in preds["0"]["error"]["message"]
    assert counted == [(1, 1, 0)]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("passes", [True, False], ids=["passes", "stays"])
def test_a_fault_of_the_storage(load, counted, monkeypatch, tmp_path, fault, passes):
    """It is tried again; if it stays, the photo has no row, so the same command tries it again. The others have theirs."""
    (tmp_path / "a.jpg").write_bytes(photo())
    left = [fault] if passes else [fault] * 99

    def read(path, max_bytes):
        if left:
            raise left.pop()
        return read_file(path, max_bytes)

    monkeypatch.setattr(cluster_images, "read_file", read)
    preds = scored(load(batch_of(photo(), str(tmp_path / "a.jpg"))))
    assert preds["0"]["boxes"]
    assert ("1" in preds) == passes
    assert counted == [(2, 0, 0) if passes else (1, 0, 1)]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("beside", [True, False], ids=["other photos are there", "nothing is there"])
def test_a_share_that_is_not_mounted(load, counted, tmp_path, beside):
    """Where nothing is below its place, a missing photo is the storage's fault and gets no row; else it has a row with its error."""
    (tmp_path / "share").mkdir()
    if beside:
        (tmp_path / "share/other.jpg").write_bytes(b"photo")
    preds = scored(load(batch_of(str(tmp_path / "share/photos/a.jpg"))))
    assert bool(preds) == beside
    assert counted == [(1, 1, 0) if beside else (0, 0, 1)]


@pytest.mark.usefixtures("no_pauses")
def test_a_store_that_cannot_be_reached(load, counted, monkeypatch):
    """As S3's region is asked for; a scheme that nobody knows is the row's own."""
    told = {"s3": OSError("curlCode: 6, Couldn't resolve host name"), "odd": ValueError("Protocol not known: odd")}

    def filesystem_of(store):
        raise InputsError(f"{store}: no") from told[store.partition(":")[0]]

    monkeypatch.setattr(cluster_images, "filesystem_of", filesystem_of)
    preds = scored(load(batch_of("s3://bucket/a.jpg", "odd://bucket/a.jpg")))
    assert list(preds) == ["1"]
    assert preds["1"]["error"]["code"] == "image_not_readable"
    assert counted == [(1, 1, 1)]


def test_a_node_without_decoders(load, counted, monkeypatch):
    """Its fault, not that of the photos."""
    monkeypatch.setattr(load._decoders, "load", lambda _: raised(DecodersUnavailable("no decoder starts")))
    assert scored(load(batch_of(photo()))) == {}
    assert counted == [(0, 0, 1)]


def raised(error):
    raise error


@pytest.mark.parametrize("stage", ["cut", "join"])
def test_a_stage_that_fails_on_a_photo(counted, monkeypatch, tmp_path, stage):
    """A row with the error: an exception would stop the whole job at this photo, each time it is started."""
    size = read_header(MODEL, tmp_path).input_size
    load = Load(size, Grid(2, 0.2, size))
    monkeypatch.setattr(cluster_stages, stage, lambda *_: raised(ZeroDivisionError("of a bug")))
    preds = scored(load(batch_of(photo(), photo())))
    load._decoders.close()
    message = "A stage of the job failed on this photo: ZeroDivisionError: of a bug"
    assert [found["error"] for found in preds.values()] == [{"code": "internal_error", "message": message}] * 2
    assert counted == [(2, 2, 0)]


def test_photos_larger_than_the_services_limits(load, counted):
    """They are the user's own."""
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 6000), (90, 120, 60)).save(buffer, "BMP")
    assert len(buffer.getvalue()) > 100e6
    assert scored(load(batch_of(buffer.getvalue())))["0"]["boxes"]
    assert counted == [(1, 0, 0)]


def test_what_ends_the_job():
    """More errors than allowed, or more photos without a row than a storage that works leaves."""
    tally = Tally.__ray_metadata__.modified_class(2)
    assert tally.add(8, ["first", "second"], []) == ""
    assert tally.add(8, ["third"], []) == "more photos failed than --error-threshold allows; one of them: first"
    tally = Tally.__ray_metadata__.modified_class(-1)
    assert tally.add(8, ["bad"] * 100, ["gone"] * 19) == ""
    assert "20 photos could not be read or scored now; the same command tries them again. gone" in tally.add(0, [], ["more"])
    assert tally.counts() == (8, 100, 20, "bad", "gone")


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
    assert counted == [(2, 1, 0)]


@pytest.mark.parametrize("size_wh", [(2000, 1), (1, 2000)])
def test_tiles_of_a_thin_photo(counted, tmp_path, size_wh):
    """Scaled down it would have no height left."""
    size = read_header(MODEL, tmp_path).input_size
    stage = Load(size, Grid(3, 0.2, size))
    buffer = io.BytesIO()
    Image.new("RGB", size_wh).save(buffer, "PNG")
    preds = scored(stage(batch_of(buffer.getvalue())))
    stage._decoders.close()
    assert "error" not in preds["0"]
    assert counted == [(1, 0, 0)]


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


def test_a_worker_whose_gpu_failed_ends(load, monkeypatch, tmp_path):
    """Ray Data starts another one and gives it the batch; an exception would stop the job."""

    class Ended(BaseException):
        pass

    def end(error, _):
        raise Ended(error)

    def lose(*_):
        raise EngineLost("the GPU failed")

    monkeypatch.setattr(cluster_stages, "end_process", end)
    detect = Detect(MODEL, EngineOptions("simulated", cache_dir=tmp_path), DetectOptions())
    monkeypatch.setattr(detect._engine, "detect", lose)
    with pytest.raises(Ended, match="the GPU failed"):
        detect(load(batch_of(photo())))
