"""Who may import whom.

serve_app ─▶ deployments ─▶ pipeline        jobs and loadtest stand beside them and import all three
in pipeline: images, model, inference and masks, in the directions of ROOMS, through their doors (`__all__`)
benchmarks and tests import everything and are imported by nobody that ships
"""

import ast
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = {"serve_app", "deployments", "pipeline", "jobs", "loadtest", "benchmarks", "tests"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "deployments": {"deployments", "pipeline"},
    "serve_app": {"serve_app", "deployments", "pipeline"},
    "jobs": {"jobs", "serve_app", "deployments", "pipeline"},
    "loadtest": OURS - {"tests", "benchmarks"},
    "benchmarks": OURS,
}
SHARED = {"types", "errors"}
"""Modules of pipeline that belong to no room."""
ROOMS = {
    "images": set(),
    "model": set(),
    "inference": {"images", "model"},
    "masks": set(),
}
"""Each room of pipeline and the rooms that it may import."""
SHIPPED = ("pipeline", "deployments", "serve_app", "jobs", "loadtest")


def is_module(path):
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path):
    """Modules that a file imports, anywhere in it; `from package import name` counts as `package.name` where that is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = REPOSITORY / node.module.replace(".", "/")
            modules = [
                alias.name
                for alias in node.names
                if (folder / alias.name).with_suffix(".py").is_file() or (folder / alias.name).is_dir()
            ]
            yield from (f"{node.module}.{name}" for name in modules)
            if len(modules) < len(node.names):
                yield node.module


def files_of(package):
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_one_way(package):
    for path in files_of(package):
        beyond = {name.split(".")[0] for name in imported(path)} & OURS - ALLOWED[package]
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room):
    for path in files_of(f"pipeline/{room}"):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
        beyond = rooms - ROOMS[room] - {room} - SHARED
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_entered_by_their_doors(room):
    doors = importlib.import_module(f"pipeline.{room}").__all__
    for door in doors:
        assert is_module(REPOSITORY / "pipeline" / room / door), door
    for path in (path for package in SHIPPED for path in files_of(package)):
        if path.is_relative_to(REPOSITORY / "pipeline" / room):
            continue
        used = {name.split(".")[2] for name in imported(path) if name.startswith(f"pipeline.{room}.")}
        assert used <= set(doors), f"{path.relative_to(REPOSITORY)} imports {', '.join(used - set(doors))} of pipeline.{room}"
