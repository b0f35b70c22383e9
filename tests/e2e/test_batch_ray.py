"""Batches on a Ray cluster: every photo has one row, a bad one its error, whatever they are read from and however they are scored."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from loadtest.service.local_service import local_service
from tests.support.s3_server import s3_server

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fs = pytest.importorskip("pyarrow.fs")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PHOTOS = 200
ADDRESS = ""
"""Of a running cluster; empty: one of its own."""


def start(*arguments):
    """The command, its own cluster and process group."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if ADDRESS:
        environment["RAY_ADDRESS"] = ADDRESS
    command = [sys.executable, "-m", "jobs.batch_ray", *map(str, arguments), "--mini-batch-size", "8"]
    if "--through" not in arguments:
        command += ["--engine", "simulated"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(*arguments, status=0):
    """Run the command to its end; returns what it said on stderr."""
    process = start(*arguments)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == status, said
    return said


def rows_of(output):
    files = list((output / "rows").glob("*.parquet"))
    return pd.concat(map(pd.read_parquet, files)) if files else pd.DataFrame(columns=["id"])


def test_killed_and_started_again(photo, tmp_path):
    """With SIGKILL, after the first rows are written; then the same command."""
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(PHOTOS):
        (folder / f"{number}.jpg").write_bytes(photo)
    (folder / "bad.jpg").write_bytes(b"no image")
    first = start(folder, "--output", output)
    deadline = time.monotonic() + 300
    while not list((output / "rows").glob("*.parquet")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    finished(folder, "--output", output)
    rows = rows_of(output)
    assert sorted(rows["id"]) == sorted([*(f"{number}.jpg#0" for number in range(PHOTOS)), "bad.jpg#0"])
    preds = dict(zip(rows["file_name"], map(json.loads, rows["preds"]), strict=True))
    assert preds["bad.jpg"]["error"]["code"] == "unsupported_image_format"
    assert preds["0.jpg"]["boxes"]
    assert set(rows.columns) == {"id", "row_number_per_file", "preds", "file_name"}


def test_s3_in_and_out(photo, tmp_path):
    """A folder of a bucket to rows and COCO results in it; then Parquet of bytes and URLs; done again, nothing is added."""
    annotations = tmp_path / "truth.json"
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 512, "height": 600} for number in range(9)]
    annotations.write_text(json.dumps({"images": images, "categories": [{"id": 5, "name": "person"}]}))
    with s3_server():
        bucket, _ = fs.FileSystem.from_uri("s3://bucket")
        photos = {f"{number}.jpg": photo for number in range(9)} | {"deep/bad.jpg": b"no image"}
        for name, data in photos.items():
            with bucket.open_output_stream(f"bucket/photos/{name}") as stream:
                stream.write(data)
        for _ in range(2):
            finished("s3://bucket/photos", "--output", "s3://bucket/scored", "--coco", annotations)
            rows = pq.read_table("bucket/scored/rows", filesystem=bucket).to_pylist()
            assert sorted(row["file_name"] for row in rows) == sorted(photos)
        assert json.loads(next(row["preds"] for row in rows if row["file_name"] == "deep/bad.jpg"))["error"]
        results = json.loads(bucket.open_input_stream("bucket/scored/coco_results.json").read())
        assert {result["image_id"] for result in results} == set(range(9))
        assert results[0]["segmentation"]["size"] == [600, 512]

        column = {"id": ["bytes", "bad"], "image": pa.array([photo, b"no image"], pa.binary())}
        pq.write_table(pa.table(column), "bucket/table/bytes.parquet", filesystem=bucket)
        finished("s3://bucket/table", "--output", tmp_path / "of_bytes")
        urls = ["s3://bucket/photos/1.jpg", "s3://bucket/gone.jpg", "http://10.0.0.1/x.jpg", None]
        pq.write_table(pa.table({"id": [1, 2, 3, 4], "image_url": urls}), "bucket/urls.parquet", filesystem=bucket)
        finished("s3://bucket/urls.parquet", "--output", tmp_path / "of_urls", "--format", "jsonl")
    of_bytes = {row["id"]: json.loads(row["preds"]) for row in rows_of(tmp_path / "of_bytes").to_dict("records")}
    assert of_bytes["bytes"]["boxes"]
    assert of_bytes["bad"]["error"]["code"] == "unsupported_image_format"
    lines = [json.loads(line) for file in (tmp_path / "of_urls/rows").iterdir() for line in file.read_text().splitlines()]
    codes = {row["id"]: json.loads(row["preds"]).get("error", {}).get("code") for row in lines}
    assert codes == {1: None, 2: "image_not_readable", 3: "url_refused", 4: "image_not_readable"}


def test_too_many_errors(tmp_path):
    """More bad photos than --error-threshold: a line and status 1; as many as it allows: their rows, though none is good."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    said = finished(folder, "--output", tmp_path / "out", "--error-threshold", 19, status=1)
    assert "stopped: more photos failed than --error-threshold allows; one of them:" in said
    assert "Traceback" not in said
    said = finished(folder, "--output", tmp_path / "other", "--error-threshold", 20, status=1)
    assert "not one of 20 photos could be scored" in said
    assert len(rows_of(tmp_path / "other")) == 20


def test_a_photo_that_its_storage_does_not_give(photo, tmp_path):
    """After a minute of retries it has no row, unlike the others; the same command scores it."""
    (tmp_path / "later.jpg").symlink_to("/proc/self/mem")  # reading its beginning is an I/O error
    table = {"id": ["now", "later", "gone"], "image": [str(tmp_path / f"{name}.jpg") for name in ("now", "later", "gone")]}
    (tmp_path / "now.jpg").write_bytes(photo)
    pq.write_table(pa.table(table), tmp_path / "photos.parquet")
    said = finished(tmp_path / "photos.parquet", "--output", tmp_path / "out", status=1)
    assert "1 of 3 photos have no row; the same command tries them again. " in said
    assert "Input/output error" in said
    assert sorted(rows_of(tmp_path / "out")["id"]) == ["gone", "now"]
    (tmp_path / "later.jpg").unlink()
    (tmp_path / "later.jpg").write_bytes(photo)
    finished(tmp_path / "photos.parquet", "--output", tmp_path / "out")
    preds = {row["id"]: json.loads(row["preds"]) for row in rows_of(tmp_path / "out").to_dict("records")}
    assert [bool(preds[name]["boxes"]) for name in ("now", "later", "gone")] == [True, True, False]


def test_through_a_running_application(photo, tmp_path, monkeypatch):
    """The application's own network scores; another name is told what runs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(photo)
    (folder / "bad.jpg").write_bytes(b"no image")

    def small(document):
        """Replicas that leave a CPU of two to the batch."""
        for deployment in document["applications"][0]["deployments"]:
            deployment["num_replicas"] = 1
            deployment["ray_actor_options"]["num_cpus"] = 0.1

    with local_service(change=small) as service:
        monkeypatch.setenv("RAY_TMPDIR", str(service.folder))
        monkeypatch.setitem(globals(), "ADDRESS", service.ray_address)
        said = finished(folder, "--output", tmp_path / "other", "--through", "other", status=2)
        assert "no such application runs in this cluster (RAY_ADDRESS); there is: rtmdet-ins (RUNNING)" in said
        finished(folder, "--output", tmp_path / "out", "--through", "rtmdet-ins", "--loaders", "1")
    preds = {row["file_name"]: json.loads(row["preds"]) for row in rows_of(tmp_path / "out").to_dict("records")}
    assert len(preds) == 21
    assert preds["bad.jpg"]["error"]["code"] == "unsupported_image_format"
    assert [found["label"] for found in preds["0.jpg"]["boxes"]] == ["person"]
