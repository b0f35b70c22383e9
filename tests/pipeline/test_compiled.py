"""The cache of compiled functions: damaged files are replaced. Compiling in a child process: once, only what the cache lacks."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pipeline
from pipeline import compiled
from tests.support.full_disk import files_no_larger_than

MODULE = """
from pipeline.compiled import compiled

@compiled
def double(number):
    return 2 * number
"""
CALLER = """
from loops.constants import FACTOR
from loops.doubles import double
from pipeline.compiled import compiled

@compiled
def multiply(number):
    return FACTOR * double(number)
"""
START = """
    import json, subprocess, sys
    from pipeline import compiled
    started, run = [], subprocess.run
    def counted(*args, **options):
        started.append(args)
        return run(*args, **options)
    subprocess.run = counted
    import loops.doubles
    compiled.compile_in_child("loops", "import loops.doubles; loops.doubles.double(1)")
    loops.doubles.double(2)
    hits = sum(loops.doubles.double.stats.cache_hits.values())
    print(json.dumps([len(started), hits]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that runs code, by default START; returns how to wait for what it prints: (children, functions loaded)."""
    (tmp_path / "loops").mkdir()
    (tmp_path / "loops/__init__.py").touch()
    (tmp_path / "loops/doubles.py").write_text(MODULE)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def start(code=START):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=subprocess.PIPE, text=True)
        return lambda: process.communicate(timeout=120)[0].strip()

    return start


def test_a_child_compiles_once_for_all(start):
    """Of two processes that start together one lets a child compile; both load its machine code, as does a third one later."""
    first, second = start(), start()
    assert sorted([first(), second()]) == ["[0, 1]", "[1, 1]"]
    assert start()() == "[0, 1]"


def test_a_changed_source_is_compiled_again(start, tmp_path):
    start()()
    (tmp_path / "loops/doubles.py").write_text(MODULE.replace("2 *", "3 *"))
    assert start()() == "[1, 1]"
    assert start()() == "[0, 1]"


@pytest.mark.parametrize("changed", ["doubles", "constants"])
def test_a_changed_import_is_compiled_again(start, tmp_path, changed):
    """Machine code contains that of the functions it calls, and constants, of other modules too."""
    (tmp_path / "loops/constants.py").write_text("FACTOR = 2\n")
    (tmp_path / "loops/multiply.py").write_text(CALLER)
    call = "from loops.multiply import multiply; print(multiply(10))"
    assert start(call)() == "40"
    path = tmp_path / f"loops/{changed}.py"
    path.write_text(path.read_text().replace("2", "3"))
    assert start(call)() == "60"


def test_precompile_leaves_nothing_to_compile():
    """Every compiled function of the product is in the cache afterwards."""
    subprocess.run([sys.executable, "-m", "pipeline.precompile"], check=True)
    root = Path(pipeline.__file__).parent
    for path in root.rglob("*.py"):
        if "\n@compiled" in path.read_text():
            importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
    functions = [function for function in compiled._functions if function.__module__.startswith("pipeline.")]
    assert {"pipeline.masks.rle", "pipeline.masks.trace", "pipeline.inference.selection"} <= {one.__module__ for one in functions}
    assert [one.__qualname__ for one in functions if not one._cache.has_code] == []


@pytest.fixture
def double(tmp_path, monkeypatch):
    """Gives a compiled function as a new process would; its cache is beside its source."""
    path = tmp_path / "doubles.py"
    path.write_text(MODULE)
    monkeypatch.setattr(compiled, "_functions", [])

    def load():
        spec = importlib.util.spec_from_file_location("doubles", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    return load


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
def test_a_damaged_cache(double, tmp_path, caplog, suffix, damage):
    """As after a loss of power: compiled anew, and the next process finds it."""
    assert double()(2) == 4
    (path,) = tmp_path.rglob(f"*{suffix}")
    good = path.read_bytes()
    path.write_bytes({"empty": b"", "half": good[: len(good) // 2], "zeros": bytes(len(good))}[damage])
    assert double()(2) == 4
    assert "is damaged" in caplog.text
    caplog.clear()
    again = double()
    assert again(2) == 4
    assert sum(again.stats.cache_hits.values()) == 1
    assert not caplog.text


def test_a_full_disk(double, caplog):
    """Compiled in memory."""
    with files_no_larger_than(10):
        assert double()(2) == 4
    assert "is not written" in caplog.text
