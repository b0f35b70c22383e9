"""The import of yapf, whose cache breaks processes that start at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENTRANCES = ("pipeline.model.checkpoints", "jobs.third_party")


def run(code: str, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("module", ENTRANCES)
def test_a_half_written_cache_does_not_matter(module, tmp_path):
    """Each module through which mmengine is imported starts beside empty grammar files, and leaves the cache as it was."""
    run("import yapf", tmp_path)
    cached = list(tmp_path.rglob("*.pickle"))
    assert cached
    for path in cached:
        path.write_bytes(b"")
    run(f"import {module}", tmp_path)
    assert all(path.read_bytes() == b"" for path in cached)


def test_the_environment_stays_as_it_was(tmp_path):
    """Other libraries keep their caches where the user wants them."""
    code = "import os; from pipeline.model.yapf_import import import_yapf; import_yapf(); print(os.environ.get('XDG_CACHE_HOME'))"
    assert run(code, tmp_path).strip() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
