"""A batch on a Ray cluster of its own: killed at some moment and started again, every photo has one row, a bad one its error."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PHOTOS = 200


def start(*arguments):
    """The command, its own cluster and process group."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.batch_ray", *map(str, arguments), "--engine", "simulated", "--mini-batch-size", "8"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


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
    second = start(folder, "--output", output)
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 0, said
    rows = rows_of(output)
    assert sorted(rows["id"]) == sorted([*(f"{number}.jpg#0" for number in range(PHOTOS)), "bad.jpg#0"])
    preds = dict(zip(rows["file_name"], map(json.loads, rows["preds"]), strict=True))
    assert preds["bad.jpg"]["error"]["code"] == "unsupported_image_format"
    assert preds["0.jpg"]["boxes"]
    assert set(rows.columns) == {"id", "row_number_per_file", "preds", "file_name"}
