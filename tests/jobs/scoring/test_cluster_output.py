"""The output folder of a batch on a cluster: rows of other settings and a second run are refused."""

from argparse import Namespace

import pytest

pytest.importorskip("pyarrow")

from jobs.scoring.cluster_inputs import filesystem_of
from jobs.scoring.cluster_output import SETTINGS, claimed, settings_of, whole_object
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
