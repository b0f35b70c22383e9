"""The batch job against a stub service on a real socket; when its client tries again is tested in tests/test_retries.py."""

import base64
import errno
import json
import os
import shutil
import signal
import threading
import tracemalloc
from types import SimpleNamespace

import pandas as pd
import pytest

from jobs import batch_score
from jobs.scoring import batch_inputs, scorer, service_client
from jobs.scoring.batch_inputs import Source
from jobs.scoring.batch_output import BatchOutput
from jobs.scoring.rows import Row, read_rows
from jobs.scoring.scorer import Done, score_all
from jobs.scoring.tables import read_file
from loadtest.service.machine import free_port
from tests.support.stub_service import FOUND, UNREADABLE, stub_service

pytestmark = pytest.mark.usefixtures("pauses")


@pytest.fixture
def folder(tmp_path):
    """Ten photos, some of them deeper, and a file that is none."""
    photos = tmp_path / "photos"
    (photos / "deep" / "er").mkdir(parents=True)
    for number in range(10):
        (photos / ("deep/er" if number % 2 else ".") / f"{number}.JPG").write_bytes(b"photo %d" % number)
    (photos / "notes.txt").write_text("none")
    return photos


def run(source, url, output, *more):
    return batch_score.main([str(source), "--url", url, "--output", str(output), "--images-per-request", "3", *more])


def rows_of(output):
    return {(row.file_name, row.row_number_per_file): row.preds for row in read_rows(output)}


def lines_of(output):
    return {line["file_name"]: line for line in map(json.loads, output.read_text().splitlines())}


def test_scores_a_folder(folder, tmp_path, capsys):
    """Every photo has its line, in the contract's names; requests carry deadline, parameters and no more images than asked."""
    output = tmp_path / "new" / "preds.jsonl"
    with stub_service() as stub:
        assert run(folder, stub.url, output, "--score-threshold", "0.5") == 0
    lines = lines_of(output)
    assert len(lines) == 10
    assert lines["deep/er/1.JPG"] == {"row_number_per_file": 0, "preds": FOUND, "file_name": "deep/er/1.JPG"}
    headers, _images, params = stub.asked[0]
    assert float(headers["x-request-timeout-seconds"]) == 30
    assert params == {"score_threshold": 0.5, "on_error": "isolate"}
    assert max(len(images) for _, images, _ in stub.asked) == 3
    assert capsys.readouterr().out.startswith("10 scored, 0 errors, 0 done before, 0 not done; ")


def test_a_second_run_continues_where_the_first_stopped(folder, tmp_path):
    """Names in the output are not sent again, and a torn last line is cut off and scored anew."""
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        run(folder, stub.url, output)
        kept = output.read_text().splitlines(keepends=True)[:7]
        output.write_text("".join(kept) + '{"row_number_per_file": 0, "preds": {"bo')
        stub.asked.clear()
        assert run(folder, stub.url, output) == 0
    assert sum(len(images) for _, images, _ in stub.asked) == 3
    assert output.read_text().startswith("".join(kept))
    assert len(lines_of(output)) == len(output.read_text().splitlines()) == 10


def test_a_bad_photo_has_an_error(tmp_path, capsys):
    """In its row, beside the others' answers; so has a file that is not there. A photo that is twice in a CSV has two rows."""
    (tmp_path / "good.png").write_bytes(b"good")
    (tmp_path / "bad.png").write_bytes(b"bad")
    (tmp_path / "list.csv").write_text("id,image\n1,good.png\n2,bad.png\n3,gone.png\n4,https://example.com/x.jpg\n5,good.png\n")
    bad = base64.b64encode(b"bad").decode()
    with stub_service(is_bad=lambda image: image == bad) as stub:
        assert run(tmp_path / "list.csv", stub.url, tmp_path / "preds.jsonl", "--images-per-request", "8") == 0
    lines = rows_of(tmp_path / "preds.jsonl")
    assert lines["list.csv", 1] == UNREADABLE
    assert lines["list.csv", 0] == lines["list.csv", 4] == FOUND
    assert lines["list.csv", 2]["error"]["code"] == "image_not_readable"
    assert lines["list.csv", 3] == FOUND
    assert "https://example.com/x.jpg" in stub.asked[0][1]
    assert "3 scored, 2 errors" in capsys.readouterr().out


def test_a_dead_server_ends_the_run(folder, tmp_path, pauses, capsys):
    """After a few tries, with its URL; nothing is written."""
    url = f"http://127.0.0.1:{free_port()}"
    assert run(folder, url, tmp_path / "preds.jsonl") == 1
    assert len(pauses) == service_client.TRIES - 1
    assert f"{url} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["/dev/full", "/"], ids=["a device", "a folder"])
def test_an_output_that_is_not_a_file_is_reported(folder, capsys, output):
    """Before anything is read of it, or scored."""
    with stub_service() as stub:
        assert run(folder, stub.url, output) == 2
        assert not stub.asked
    assert f"{output} is not a file" in capsys.readouterr().err


def test_a_server_that_dies_ends_the_run(folder, tmp_path, capsys):
    """Answered photos are kept; the others have no line and are scored by the next run."""
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        deaths = iter([False, False, False])
        stub.is_bad = lambda _image: next(deaths)  # then StopIteration: the connection breaks without an answer
        stub.handle_error = lambda *_: None
        assert run(folder, stub.url, output, "--concurrency", "1") == 1
        assert len(lines_of(output)) == 3
        assert "7 not done" in capsys.readouterr().out
        stub.is_bad = lambda _image: False
        assert run(folder, stub.url, output) == 0
    assert len(lines_of(output)) == 10


def test_failed_requests_leave_no_line(folder, tmp_path, capsys):
    """A refused request, and images on which the service failed repeatedly: exit status 1."""
    with stub_service(statuses=[400]) as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--concurrency", "1") == 1
    assert len(lines_of(tmp_path / "preds.jsonl")) == 7
    assert "answered 400" in capsys.readouterr().err


def test_images_with_an_error_of_the_service_are_retried(folder, tmp_path, pauses):
    """An isolated image with `internal_error` is no bad image."""
    with stub_service(answer={"boxes": [], "error": {"code": "internal_error", "message": "failed"}}) as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--concurrency", "1", "--images-per-request", "64") == 1
    assert len(stub.asked) == service_client.TRIES
    assert pauses
    assert lines_of(tmp_path / "preds.jsonl") == {}


def test_an_interrupt_keeps_what_is_done(folder, tmp_path, capsys, monkeypatch):
    """Ctrl-C after the first group: its lines are written, the summary is printed."""
    real, calls = scorer.wait, iter([True])

    def wait(*args, **options):
        if next(calls, False):
            return real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(scorer, "wait", wait)
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--concurrency", "1") == 1
    said = capsys.readouterr()
    assert "the same command continues" in said.err
    assert "not done" in said.out
    assert lines_of(tmp_path / "preds.jsonl")


def calling(monkeypatch, owner, name):
    """An event that is set after a call of this method."""
    called, real = threading.Event(), getattr(owner, name)

    def method(*args):
        real(*args)
        called.set()

    monkeypatch.setattr(owner, name, method)
    return called


def test_sigterm_keeps_what_is_done(folder, tmp_path, capsys, monkeypatch):
    """As Kubernetes sends it: Parquet is written, and a request that fails is not tried again."""
    written = calling(monkeypatch, BatchOutput, "write")
    stopped = calling(monkeypatch, service_client.ServiceClient, "stop")
    with stub_service() as stub:

        def on_post():
            if len(stub.asked) == 2:
                stub.statuses.extend([503] * 50)
                assert written.wait(10)
                os.kill(os.getpid(), signal.SIGTERM)
                assert stopped.wait(10)

        stub.on_post = on_post
        assert run(folder, stub.url, tmp_path / "preds.parquet", "--concurrency", "1") == 1
        assert len(stub.asked) == 2
    assert "the same command continues" in capsys.readouterr().err
    assert len(pd.read_parquet(tmp_path / "preds.parquet")) == 3


def test_large_photos_are_sent_apart(folder, tmp_path):
    """A body stays below the service's limit; a photo that never fits has an error and no request."""
    (folder / "huge.jpg").write_bytes(b"x" * 40_000)
    for number in range(3):
        (folder / f"large{number}.jpg").write_bytes(b"x" * 12_000)
    with stub_service(limits={"max_body_mb": 0.04, "max_images_per_request": 2}) as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
    assert all(sum(map(len, images)) < 40_000 and len(images) <= 2 for _, images, _ in stub.asked)
    assert lines_of(tmp_path / "preds.jsonl")["huge.jpg"]["preds"]["error"]["code"] == "image_too_large"


def test_a_file_that_is_far_too_large(folder, tmp_path):
    """Of 3 GB no more is read than fits into a request: in base64 it would take 7 GB of memory."""
    with (folder / "huge.tif").open("wb") as file:
        file.truncate(3 * 10**9)
    tracemalloc.start()
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines_of(tmp_path / "preds.jsonl")["huge.tif"]["preds"]["error"]["code"] == "image_too_large"
    assert peak < 150e6


def test_a_fault_of_the_storage_is_not_a_row(folder, tmp_path, monkeypatch, capsys):
    """As of a share that fails for a minute: status 1, and the same command scores these photos. What is missing or locked has a row."""
    kinds = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR]
    failing = {folder / f"{2 * number}.JPG": kind for number, kind in enumerate(kinds)}
    for path in failing:
        path.write_bytes(b"photo")

    def read(path, *max_bytes):
        if path in failing:
            raise OSError(failing[path], os.strerror(failing[path]), str(path))
        return read_file(path, *max_bytes)

    monkeypatch.setattr(batch_inputs, "read_file", read)
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        assert run(folder, stub.url, output) == 1
        assert "0.JPG: Input/output error" in capsys.readouterr().err
        bad = {name for name, line in lines_of(output).items() if "error" in line["preds"]}
        assert bad == {"6.JPG", "8.JPG", "10.JPG", "12.JPG"}
        assert not {"0.JPG", "2.JPG", "4.JPG"} & set(lines_of(output))
        failing.clear()
        assert run(folder, stub.url, output) == 0
    assert lines_of(output)["0.JPG"]["preds"] == FOUND


def test_a_share_that_is_not_mounted(tmp_path, capsys):
    """Its place is empty or missing: none of its photos has a row, so that the same command scores them later."""
    places = [f"{tmp_path}/share/a.jpg", f"{tmp_path}/share/more/b.jpg", "/no-such-place/c.jpg"]
    (tmp_path / "share").mkdir()
    (tmp_path / "list.csv").write_text("\n".join(["image", *places]))
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        assert run(tmp_path / "list.csv", stub.url, output) == 1
        assert "is its storage mounted on this machine?" in capsys.readouterr().err
        assert not output.exists() or not output.read_text()
        (tmp_path / "share/other.txt").write_text("mounted")
        (tmp_path / "share/a.jpg").write_bytes(b"photo")
        assert run(tmp_path / "list.csv", stub.url, output) == 1
    rows = rows_of(output)
    assert rows.keys() == {("list.csv", 0), ("list.csv", 1)}
    assert rows["list.csv", 0] == FOUND
    assert rows["list.csv", 1]["error"]["code"] == "image_not_readable"


def test_a_storage_that_is_gone_ends_the_run(folder, tmp_path, monkeypatch, capsys):
    for number in range(100):
        (folder / f"more{number}.jpg").write_bytes(b"photo")

    def read(path, *_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(batch_inputs, "read_file", read)
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--concurrency", "1") == 1
    assert "requests or reads of photos failed; the same command tries them again" in capsys.readouterr().err
    assert not (tmp_path / "preds.jsonl").exists() or not lines_of(tmp_path / "preds.jsonl")


def test_the_key_comes_from_the_environment(folder, tmp_path, monkeypatch, capsys):
    """As a bearer key; without a valid one the run ends at once, with the service's message and the name of the option."""
    monkeypatch.setenv("SCORING_KEY", "right")
    with stub_service(key="right") as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--key-env", "SCORING_KEY") == 0
        monkeypatch.setenv("SCORING_KEY", "wrong")
        assert run(folder, stub.url, tmp_path / "other.jsonl", "--key-env", "SCORING_KEY") == 1
        assert "401" in (said := capsys.readouterr().err)
        assert "the one that --key-env names is wrong" in said
        assert run(folder, stub.url, tmp_path / "other.jsonl") == 1
    assert "name its variable with --key-env" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("photos", ["--url", "127.0.0.1:8000"], "is not a complete URL"),
        ("photos", ["--url", "https://host/base/score/"], "without /score, which is appended: https://host/base"),
        ("photos", ["--key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        ("photos", ["--concurrency", "0"], "not a number from 1"),
    ],
)
def test_wrong_arguments(folder, tmp_path, source, more, said, capsys):
    with pytest.raises(SystemExit):
        run(folder.parent / source, "http://127.0.0.1:9", tmp_path / "preds.jsonl", *more)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path\na.jpg\n", "no column `image`; the columns are path"),
        ("image;label\na.jpg;1\n", "columns must be separated by commas"),
        ("image\n", "there is no photo"),
    ],
)
def test_wrong_inputs(tmp_path, text, said, capsys):
    (tmp_path / "list.csv").write_text(text)
    assert run(tmp_path / "list.csv", "http://127.0.0.1:9", tmp_path / "preds.jsonl") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["my diary\n", "my diary", '[{"file_name": "a"}]\n'])
def test_another_file_is_not_written_into(folder, tmp_path, text, capsys):
    """Nor cut, however it ends."""
    (tmp_path / "mine.txt").write_text(text)
    assert run(folder, "http://127.0.0.1:9", tmp_path / "mine.txt") == 2
    assert "not a line of this job" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == text


def test_help_tells_the_exit_status(capsys):
    """The help explains that 0 may include bad photos, and that folders are created."""
    with pytest.raises(SystemExit):
        batch_score.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0 if every photo has a row (the row of a bad photo holds an error" in said
    assert "missing folders are created" in said


def test_skipped_files_are_reported(folder, tmp_path, capsys):
    """By suffix, on stderr."""
    (folder / "phone.heic").write_bytes(b"x")
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
    said = capsys.readouterr().err
    assert "2 files of" in said
    assert "1 .heic" in said
    assert "1 .txt" in said


@pytest.mark.parametrize(("gone", "said"), [(".", "cannot be read as a folder"), ("deep", "5 of 10 photos are no longer there")])
def test_photos_that_vanish_before_they_are_read(folder, tmp_path, capsys, monkeypatch, gone, said):
    """One line and exit status 1."""
    monkeypatch.setattr(service_client.ServiceClient, "info", lambda _: shutil.rmtree(folder / gone) or {})
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 1
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_names_that_are_not_utf8_have_their_rows(folder, tmp_path):
    """And are done when the same command runs again."""
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"old")
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
        stub.asked.clear()
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
        assert not stub.asked
    assert lines_of(tmp_path / "preds.jsonl")[r"caf\xe9.jpg"]["preds"] == FOUND


def test_no_scored_photo_is_exit_status_1(folder, tmp_path, capsys):
    """Exit status 1, with the first error; rows are there all the same."""
    with stub_service(is_bad=lambda _: True) as stub:
        assert run(folder, stub.url, tmp_path / "preds.csv") == 1
        assert "none of 10 photos could be scored; first error: " in capsys.readouterr().err
        assert run(folder, stub.url, tmp_path / "preds.csv") == 0, "all have their row: there is nothing left to do"
    assert len((tmp_path / "preds.csv").read_text().splitlines()) == 10


def test_a_resume_with_another_threshold_is_refused(folder, tmp_path, capsys):
    """Also one with another folder: its names could be mistaken for finished photos."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with stub_service() as stub:
        assert run(folder, stub.url, tmp_path / "preds.jsonl") == 0
        assert run(folder, stub.url, tmp_path / "preds.jsonl", "--score-threshold", "0.9") == 2
        assert "params was {}, is now {'score_threshold': 0.9}" in capsys.readouterr().err
        assert run(other, stub.url, tmp_path / "preds.jsonl") == 2
    assert "source was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"weights": "0a"}, {"weights": "0b"}, "weights was '0a', is now '0b'"),
        ({"exif_orientation": True}, {"exif_orientation": False}, "exif_orientation was True, is now False"),
        ({"limits": {"max_detections": 100}}, {"limits": {"max_detections": 9}}, "max_detections was 100, is now 9"),
        (
            {"limits": {"default_score_threshold": 0.3}},
            {"limits": {"default_score_threshold": 0.5}},
            "default_score_threshold was 0.3",
        ),
    ],
    ids=["weights of the same name", "orientation", "objects", "threshold"],
)
def test_a_service_that_answers_otherwise_now(folder, tmp_path, capsys, before, now, said):
    """Its rows are not put beside the earlier ones. A threshold that is asked for makes the service's meaningless."""
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        stub.info = before
        assert run(folder, stub.url, output) == 0
        stub.info = now
        assert run(folder, stub.url, output) == 2
        assert said in capsys.readouterr().err
        stub.info = {}
        assert run(folder, stub.url, tmp_path / "older.jsonl", "--score-threshold", "0.5") == 0
        stub.info = {"weights": "0b", "limits": {"default_score_threshold": 0.5}}
        assert run(folder, stub.url, tmp_path / "older.jsonl", "--score-threshold", "0.5") == 0, "an older service said less"


def test_photos_that_were_changed_after_their_rows_are_reported(folder, tmp_path, capsys):
    """Each time, until a row is added; new photos are none of them."""
    output = tmp_path / "preds.jsonl"
    with stub_service() as stub:
        assert run(folder, stub.url, output) == 0
        assert run(folder, stub.url, output) == 0
        assert "changed after" not in capsys.readouterr().err
        later = output.stat().st_mtime + 10
        (folder / "4.JPG").write_bytes(b"another photo")
        (folder / "new.jpg").write_bytes(b"new")
        for name in ("4.JPG", "new.jpg"):
            os.utime(folder / name, (later, later))
        assert run(folder, stub.url, output) == 0
    told = capsys.readouterr()
    assert "changed after their rows were written: 1, the first 4.JPG" in told.err
    assert told.out.splitlines()[-1].startswith("1 scored, 0 errors, 10 done before")


def test_a_table_with_other_rows_is_refused(folder, tmp_path, capsys):
    """A row before those that are done gives their numbers to other photos. Rows at the end are scored, also in tables that are new."""
    tables, output = tmp_path / "tables", tmp_path / "preds.jsonl"
    tables.mkdir()
    rows = [f"{folder}/{number}.JPG" for number in (0, 2, 4)]
    (tables / "a.csv").write_text("\n".join(["image", *rows[:2]]))
    with stub_service() as stub:
        assert run(tables, stub.url, output) == 0
        (tables / "a.csv").write_text("\n".join(["image", *rows]))
        (tables / "b.csv").write_text("\n".join(["image", *rows]))
        assert run(tables, stub.url, output) == 0
        assert len(rows_of(output)) == 6
        capsys.readouterr()
        (tables / "a.csv").write_text("\n".join(["image", rows[2], *rows]))
        assert run(tables, stub.url, output) == 2
    assert "other settings: rows of a.csv was [2, '" in capsys.readouterr().err
    assert len(rows_of(output)) == 6


def test_memory_does_not_grow_with_the_batch(tmp_path):
    """Neither with its rows nor with those that are done: 30,000 of each."""
    table = tmp_path / "list.csv"
    table.write_text("image\n" + "".join(f"https://example.com/{number:0100}.jpg\n" for number in range(30_000)))
    scorer_of_nothing = SimpleNamespace(score=lambda photos: Done([Row(photo.row, FOUND, photo.file_name) for photo in photos]))
    output = BatchOutput(tmp_path / "preds.jsonl", "jsonl")
    tracemalloc.start()
    for done in score_all(scorer_of_nothing, Source(str(table)), 8, 2):
        output.write(done.rows)
    output.close()
    again = BatchOutput(tmp_path / "preds.jsonl", "jsonl")
    assert all(again.has(photo.key) for photo in Source(str(table)))
    again.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
