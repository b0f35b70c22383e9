"""The README's Python runs as it stands, against a running server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import blocks

SNIPPETS = blocks("python")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(service, snippet):
    """Only the address is changed."""
    code = snippet.replace("http://127.0.0.1:8000", service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path.cwd(), check=False)
    assert done.returncode == 0, done.stderr
    assert "person" in done.stdout


def test_demo(service, tmp_path):
    """`make demo`'s program writes the JSON and the picture."""
    command = [sys.executable, "-m", "jobs.demo", "--url", service.url, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "response.json").stat().st_size > 100
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
