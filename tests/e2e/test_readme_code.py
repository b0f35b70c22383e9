"""The README's commands and code run as they stand, against a running server; so does the client."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pages import REPOSITORY, blocks

ADDRESS = "http://127.0.0.1:8000"
SNIPPETS = blocks("python")
CURLS = [block for block in blocks("bash") if "curl" in block]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(service, snippet):
    """Only the address is changed."""
    code = snippet.replace(ADDRESS, service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert "person" in done.stdout


def test_curl_runs(service, tmp_path):
    """Both commands: the JSON of a photo, and its picture."""
    script = "\n".join(CURLS).replace(ADDRESS, service.url).replace("serve_app/", f"{REPOSITORY}/serve_app/")
    command = ["bash", "-euc", script.replace("curl ", "curl --silent --fail ")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert {found["label"] for found in answer["boxes"]} == {"person"}
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (640, 424)


def test_client(service, tmp_path, monkeypatch):
    """The client scores the same photo, and draws it."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "client"))
    from rtmdet_ins_client import Client

    photo = REPOSITORY / "serve_app/playground/examples/riders.jpg"
    result = Client(service.url).score(photo, score_threshold=0.5)
    assert {found.label for found in result.objects} == {"person"}
    result.draw(photo).save(tmp_path / "out.png")


def test_demo(service, tmp_path):
    """`make demo`'s program writes the JSON and the picture."""
    command = [sys.executable, "-m", "jobs.demo", "--url", service.url, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "response.json").stat().st_size > 100
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
