"""Who may import whom.

serve_app ─▶ deployments ─▶ pipeline        jobs and loadtest stand beside them and import all three
in pipeline: images, model, inference and masks, in the directions of SUBPACKAGES, through their public modules (`__all__`)
in a package with folders: in the directions of FOLDERS
benchmarks and tests may import everything, and no shipped module imports them
"""

import ast
import importlib
import re

import pytest

from benchmarks.imports import REPOSITORY, drawing, imported, is_module

OURS = {"serve_app", "deployments", "pipeline", "jobs", "loadtest", "benchmarks", "tests"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "deployments": {"deployments", "pipeline"},
    "serve_app": {"serve_app", "deployments", "pipeline"},
    "jobs": {"jobs", "serve_app", "deployments", "pipeline"},
    "loadtest": OURS - {"tests", "benchmarks"},
    "benchmarks": OURS,
}
SHARED = {"types", "errors", "compiled", "fair_queue"}
"""Modules of pipeline that belong to no subpackage."""
SUBPACKAGES = {
    "images": set(),
    "model": set(),
    "inference": {"images", "model"},
    "masks": set(),
}
"""Each subpackage of pipeline and those that it may import."""
FOLDERS = {
    "serve_app": {"http": set(), "config": {"http"}},
    "deployments": {"telemetry": set(), "ray_serve": set(), "stages": {"telemetry"}, "scoring": {"stages"}},
    "loadtest": {"load": set(), "service": set(), "measurements": {"load", "service"}, "planning": {"load", "service"}},
    "jobs.training": {"data": set(), "network": set(), "loop": {"network"}, "output": {"loop"}},
}
"""The folders of a package, and for each the others that it may import."""
BELOW = {"serve_app": {"keys"}, "deployments": {"settings", "fetch_settings", "task", "params"}, "jobs.training": {"settings"}}
"""Modules at the top of a package that its folders may import; the other ones put the folders together."""
LARGE = [
    *(*FOLDERS, "jobs.scoring", "jobs.sweeping"),
    *(f"{package}.{folder}" for package, folders in FOLDERS.items() for folder in folders),
]
SHIPPED = ("pipeline", "deployments", "serve_app", "jobs", "loadtest")


def files_of(package):
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_one_way(package):
    for path in files_of(package):
        beyond = {name.split(".")[0] for name in imported(path)} & OURS - ALLOWED[package]
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)}"


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_subpackages_import_one_way(subpackage):
    for path in files_of(f"pipeline/{subpackage}"):
        used = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
        beyond = used - SUBPACKAGES[subpackage] - {subpackage} - SHARED
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)}"


@pytest.mark.parametrize(("package", "folder"), [(package, folder) for package in FOLDERS for folder in FOLDERS[package]])
def test_folders_import_one_way(package, folder):
    for path in files_of(f"{package.replace('.', '/')}/{folder}"):
        used = {name.removeprefix(f"{package}.").split(".")[0] for name in imported(path) if name.startswith(f"{package}.")}
        beyond = used - FOLDERS[package][folder] - {folder} - BELOW.get(package, set())
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)} of {package}"


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_subpackages_are_imported_by_their_public_modules(subpackage):
    public = importlib.import_module(f"pipeline.{subpackage}").__all__
    for module in public:
        assert is_module(REPOSITORY / "pipeline" / subpackage / module), module
    for path in (path for package in SHIPPED for path in files_of(package)):
        if path.is_relative_to(REPOSITORY / "pipeline" / subpackage):
            continue
        used = {name.split(".")[2] for name in imported(path) if name.startswith(f"pipeline.{subpackage}.")}
        assert used <= set(public), (
            f"{path.relative_to(REPOSITORY)} imports {', '.join(used - set(public))} of pipeline.{subpackage}"
        )


def test_the_drawing_is_of_the_code():
    """docs/DESIGN.md shows who imports whom; `python -m benchmarks.imports` prints it anew."""
    design = (REPOSITORY / "docs/DESIGN.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{drawing()}\n```" in design


@pytest.mark.parametrize("package", LARGE)
def test_the_map_of_a_package_names_its_modules(package):
    """The docstrings of the large packages say what their modules are for."""
    folder = REPOSITORY / package.replace(".", "/")
    words = set(re.findall(r"\w+", ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))))
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= words
    assert {path.parent.name for path in folder.glob("*/__init__.py")} <= words
