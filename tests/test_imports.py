"""Who may import whom: serve_app ─▶ deployments ─▶ pipeline; jobs and loadtest stand beside them and import all; nobody imports tests."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = {"serve_app", "deployments", "pipeline", "jobs", "loadtest", "tests"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "deployments": {"deployments", "pipeline"},
    "serve_app": {"serve_app", "deployments", "pipeline"},
    "jobs": {"jobs", "serve_app", "deployments", "pipeline"},
    "loadtest": OURS - {"tests"},
}


def imported(path):
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    for path in files:
        beyond = set(imported(path)) & OURS - ALLOWED[package]
        assert not beyond, f"{path.relative_to(REPOSITORY)} imports {', '.join(beyond)}"
