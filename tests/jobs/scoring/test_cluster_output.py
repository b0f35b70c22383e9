"""The output folder of a batch on a cluster: other settings and a second run are refused; its rows as COCO results."""

import json
from argparse import Namespace

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.evaluation.results_file import read_results
from jobs.scoring.cluster_inputs import filesystem_of
from jobs.scoring.cluster_output import SETTINGS, CocoWriter, claimed, settings_of, whole_object
from jobs.scoring.tables import InputsError
from tests.support.full_disk import files_no_larger_than


def told(output="/nowhere", model="m", engine="openvino", **changes):
    args = Namespace(**{"source": "photos", "output": str(output), **dict.fromkeys(SETTINGS)} | changes)
    return settings_of(args, str(output), {"model": model, "engine": engine})


def test_one_run_at_a_time(tmp_path):
    """A second one is refused while the first writes, and free to go on afterwards."""
    output = str(tmp_path / "odd #1 100% ü")
    with claimed(output, told()), pytest.raises(InputsError, match="another run is writing it"), claimed(output, told()):
        pass
    with claimed(output, told(source="photos/")):
        pass


def test_rows_of_other_settings(tmp_path):
    """Named, with both values. While there are no rows, other settings are taken: a mistyped --model binds nobody."""
    with claimed(str(tmp_path), told(model="mistyped")):
        (tmp_path / "photos.parquet").write_bytes(b"a list of other photos")
    with claimed(str(tmp_path), told()):
        assert not (tmp_path / "photos.parquet").exists()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/1.parquet").write_bytes(b"rows")
    said = "model was 'm', is now 'n'; engine was 'openvino', is now 'simulated'; tiles was None, is now 2"
    with pytest.raises(InputsError, match=said), claimed(str(tmp_path), told(model="n", engine="simulated", tiles=2)):
        pass
    with claimed(str(tmp_path), told()):
        pass


def test_an_output_where_the_source_is(tmp_path):
    """The list of the photos would be taken for a Parquet source by the next run, or be written over one."""
    for source in (tmp_path, f"{tmp_path}/", tmp_path / "photos.parquet", f"file://{tmp_path}"):
        with pytest.raises(InputsError, match=r"--output .*: the source is there, .* name another folder"):
            told(tmp_path, source=str(source))
    told(tmp_path, source=str(tmp_path / "deeper"))
    told(tmp_path / "deeper", source=str(tmp_path))


def test_a_list_of_something_else(tmp_path):
    """A file of that name that no earlier run wrote is left as it is."""
    (tmp_path / "photos.parquet").write_bytes(b"of the user")
    with pytest.raises(InputsError, match=r"photos\.parquet is of something else"), claimed(str(tmp_path), told()):
        pass
    assert (tmp_path / "photos.parquet").read_bytes() == b"of the user"


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(InputsError, match=r"run.json is not of this job"), claimed(str(tmp_path), told()):
        pass


def test_a_record_on_a_full_disk(tmp_path):
    """Written in part, it would be taken for another job's the next time."""
    with files_no_larger_than(10), pytest.raises(OSError, match=r"run\.json"), claimed(str(tmp_path), told()):
        pass
    with claimed(str(tmp_path), told()):
        pass


def test_an_object_on_a_full_disk(tmp_path):
    """The file that was there stays."""
    (tmp_path / "coco_results.json").write_text("before")
    filesystem, folder = filesystem_of(str(tmp_path))
    with (
        files_no_larger_than(10),
        pytest.raises(OSError, match=r"coco_results\.json"),
        whole_object(filesystem, f"{folder}/coco_results.json") as stream,
    ):
        stream.write(b"x" * 100)
    assert (tmp_path / "coco_results.json").read_text() == "before"


RLE = {"size": [10, 20], "counts": "f0460000000000000R3"}
TRUTH = {"images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10}], "categories": [{"id": 3, "name": "cat"}]}


def found(label):
    box = {"topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.6}
    return {"box": box, "label": label, "score": 0.5, "polygon": [], "rle": RLE}


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(TRUTH))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("row_format", ["parquet", "jsonl"])
def test_results_have_the_ids_of_the_annotations(tmp_path, annotations, row_format, encoding):
    """Pixels and ids; a bad photo has none; a photo and a label that are not annotated are left out, and reported."""
    annotations.write_text(json.dumps(TRUTH), encoding)
    preds = {"a.jpg": [found("cat"), found("dog")], "b.jpg": [found("cat")], "bad.jpg": []}
    rows = [{"file_name": name, "preds": json.dumps({"boxes": boxes})} for name, boxes in preds.items()]
    (tmp_path / "rows").mkdir()
    if row_format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows/1.parquet")
    else:
        (tmp_path / "rows/1.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = CocoWriter(annotations).write(str(tmp_path), row_format)
    assert said == f"{tmp_path}/coco_results.json: 1 results; not in the annotations, so left out: the label dog and 2 more"
    (result,) = json.loads((tmp_path / "coco_results.json").read_text())
    assert result == {"image_id": 7, "category_id": 3, "bbox": [2, 2, 8, 4], "score": 0.5, "segmentation": RLE}
    assert read_results(tmp_path / "coco_results.json", TRUTH | {"annotations": []})


def test_rows_larger_than_a_mebibyte(tmp_path, annotations):
    """Photos with many objects: Arrow reads JSON in blocks of that size."""
    (tmp_path / "rows").mkdir()
    row = {"file_name": "a.jpg", "preds": json.dumps({"boxes": [found("cat")] * 20_000})}
    (tmp_path / "rows/1.json").write_text(f"{json.dumps(row)}\n" * 3)
    assert "60,000 results" in CocoWriter(annotations).write(str(tmp_path), "jsonl")


def test_photos_of_other_names_are_reported(tmp_path, annotations):
    """No file of results without one: the annotations were made for a folder above or below."""
    (tmp_path / "rows").mkdir()
    pq.write_table(
        pa.Table.from_pylist([{"file_name": "val/a.jpg", "preds": json.dumps({"boxes": [found("cat")]})}]),
        tmp_path / "rows/1.parquet",
    )
    with pytest.raises(InputsError, match=r"--coco: the photo val/a\.jpg and all others .* whose first photo is a\.jpg"):
        CocoWriter(annotations).write(str(tmp_path), "parquet")
    assert not list(tmp_path.glob("coco_results.json*"))
    annotations.write_text(json.dumps(TRUTH | {"images": TRUTH["images"] + [TRUTH["images"][0] | {"id": 8}]}))
    with pytest.raises(InputsError, match=r"several images with the file_name a\.jpg"):
        CocoWriter(annotations)


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"images": [{}], "categories": []}'])
def test_files_that_are_no_annotations(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputsError, match=r"--coco: .*x.json is not a COCO file"):
        CocoWriter(tmp_path / "x.json")
