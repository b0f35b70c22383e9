"""The output file of a batch: resuming, and locking between two runs."""

import json
from contextlib import closing

import pandas as pd
import pytest

from jobs.scoring.batch_output import BatchOutput
from jobs.scoring.rows import FORMATS, Row, read_rows
from jobs.scoring.tables import InputsError
from tests.support.full_disk import files_no_larger_than
from tests.support.stub_service import FOUND, UNREADABLE

ROWS = [Row(0, FOUND, "deep/a, b.jpg"), Row(7, UNREADABLE, 'list "x".csv')]


def write(path, rows=ROWS, form="jsonl", **facts):
    with closing(BatchOutput(path, form)) as output:
        note = output.made_by(facts)
        output.write(rows)
    return note


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_round_trips(tmp_path, form):
    """Every format keeps all fields, and finds the existing rows."""
    path = tmp_path / "new" / "preds"
    write(path, form=form)
    assert list(read_rows(path)) == ROWS
    output = BatchOutput(path, form)
    assert output.has(("deep/a, b.jpg", 0))
    assert output.has(('list "x".csv', 7))
    assert not output.has(("deep/a, b.jpg", 7))
    output.close()


def test_the_notebooks_read_it(tmp_path):
    """`pd.read_csv` of the batch notebook, and rows of `filename` and `boxes` of the older one."""
    write(tmp_path / "predictions.csv", form="csv")
    table = pd.read_csv(tmp_path / "predictions.csv", header=None, names=["row_number_per_file", "preds", "file_name"])
    assert table["row_number_per_file"].tolist() == [0, 7]
    assert json.loads(table["preds"][0]) == FOUND
    assert table["file_name"].tolist() == ["deep/a, b.jpg", 'list "x".csv']
    write(tmp_path / "older", form="boxes")
    first = json.loads((tmp_path / "older").read_text().splitlines()[0])
    assert (first["filename"], first["boxes"]) == ("deep/a, b.jpg", FOUND["boxes"])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_parquet(tmp_path, monkeypatch, at_once):
    """Whole at the end of each run, in however many parts; its rows are kept as lines, so that the next run goes on."""
    monkeypatch.setattr("jobs.scoring.batch_output.PARQUET_ROWS_AT_ONCE", at_once)
    for rows in (ROWS[:1], ROWS[1:]):
        write(tmp_path / "preds.parquet", rows, "parquet")
    table = pd.read_parquet(tmp_path / "preds.parquet")
    assert table["row_number_per_file"].tolist() == [0, 7]
    assert json.loads(table["preds"][1]) == UNREADABLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preds.parquet", "preds.parquet.jsonl", "preds.parquet.run"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_torn_line_is_cut_off(tmp_path, form):
    """At every place where a kill can tear it."""
    write(tmp_path / "preds", form=form)
    whole = (tmp_path / "preds").read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        (tmp_path / "preds").write_bytes(whole[:end])
        output = BatchOutput(tmp_path / "preds", form)
        assert not output.has(ROWS[1][::-2])
        output.close()
        assert (tmp_path / "preds").read_bytes() == whole[:first]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text", ["my diary\n", "my diary", '[{"file_name": "a"}]\n', "2026, my diary", "1,2,3\n"])
def test_a_file_of_another_kind_is_not_changed(tmp_path, form, text):
    """It is not truncated, and no file is created beside it."""
    (tmp_path / "mine").write_text(text)
    with pytest.raises(InputsError, match="not a line of this job"):
        BatchOutput(tmp_path / "mine", form)
    assert (tmp_path / "mine").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_two_runs_do_not_write_one_file(tmp_path):
    """The second one is refused until the first one has ended."""
    first = BatchOutput(tmp_path / "preds.jsonl", "jsonl")
    with pytest.raises(InputsError, match="another run is writing it"):
        BatchOutput(tmp_path / "preds.jsonl", "jsonl")
    first.close()
    BatchOutput(tmp_path / "preds.jsonl", "jsonl").close()


def test_rows_with_other_settings_are_refused(tmp_path):
    """A resume with another model, threshold or format is refused by name, until the small file is deleted."""
    path = tmp_path / "preds.jsonl"
    assert write(path, model="nano", params={}) == ""
    assert write(path, [], model="nano", params={}) == ""
    with pytest.raises(InputsError, match=r"model was 'nano', is now 'tiny'; params was \{\}, is now \{'score_threshold': 0.5\}"):
        write(path, [], model="tiny", params={"score_threshold": 0.5})
    (tmp_path / "preds.jsonl.run").unlink()
    assert "nothing tells whether the rows" in write(path, [], model="tiny")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_run_that_never_began_leaves_nothing(tmp_path, form):
    """The service did not answer, say."""
    BatchOutput(tmp_path / f"preds.{form}", form).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [*FORMATS, "parquet"])
def test_a_full_disk_loses_no_row(tmp_path, form):
    """The rows that fit are there, those that do not are not in part; the next run adds them, and only them."""
    path, rows = tmp_path / f"preds.{form}", [Row(number, FOUND, f"{number}.jpg") for number in range(50)]
    write(path, rows[:5], form, model="nano")
    with files_no_larger_than(1500), pytest.raises(OSError, match="preds") as raised:
        write(path, rows[5:], form, model="nano")
    assert str(path) in raised.value.filename
    with closing(BatchOutput(path, form)) as output:
        assert output.made_by({"model": "nano"}) == ""
        assert [output.has(row[::-2]) for row in rows] == [True] * 5 + [False] * 45
        output.write(rows[5:])
    assert list(read_rows(output.rows)) == rows
    assert not [file for file in tmp_path.iterdir() if ".part" in file.name]


def test_a_record_that_was_not_written_whole(tmp_path):
    """Is no record: the next run starts."""
    with files_no_larger_than(10), pytest.raises(OSError, match=r"preds\.jsonl\.run"):
        write(tmp_path / "preds.jsonl", model="nano")
    assert not list(tmp_path.iterdir())
    assert write(tmp_path / "preds.jsonl", model="nano") == ""
