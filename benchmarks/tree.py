"""Writes the tree in docs/DESIGN.md: one line per module, the first sentence of its docstring.

python -m benchmarks.tree
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DESIGN = REPOSITORY / "docs/DESIGN.md"
HEADING = "## The tree"
PACKAGES = {
    "serve_app": "HTTP, the checks of a configuration, the commands; builds the application",
    "deployments": "Ray Serve deployments, without image processing",
    "pipeline": "image processing and the network, without Ray",
    "jobs": "commands: many photos, training, evaluation",
    "client": "a separate package, without torch or ray",
}
OTHERS = {
    "monitoring": "Prometheus and its alerts, Grafana dashboard, OpenTelemetry collector, Fluent Bit",
    "deploy": "Dockerfile, KubeRay's rayservice.yaml",
    "examples": "Ray jobs, backends for labelling tools",
    "loadtest": "load tests (LOADTEST.md): load/ is sent to a service/ in measurements/; planning/ computes replicas from costs",
    "benchmarks": "comparisons with mmdet and other servers; not installed",
    "tests": "one test module per module; e2e/ runs the real server; security/ attacks it; support/ has shared helpers",
}
ASSETS = {
    "playground/": "the playground page: index.html, app.js and its modules, example photos",
    "docs/": "Swagger UI's files for /docs",
}
WIDTH = 110


def tree() -> str:
    """The tree, as text."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for package, note in PACKAGES.items():
        yield f"{package + '/':<17}{note}"
        folder = REPOSITORY / package
        modules = (path for path in folder.rglob("*.py") if path.name != "__init__.py" and "build" not in path.parts)
        for path in sorted(modules, key=lambda path: (len(path.relative_to(folder).parts) > 1, str(path))):
            yield _line(path.relative_to(folder).as_posix(), _first_sentence(path))
        if package == "serve_app":
            yield from (_line(name, text) for name, text in ASSETS.items())
    yield from (f"{name + '/':<17}{note}" for name, note in OTHERS.items())


def _line(name: str, text: str) -> str:
    return f"  {name:<38}{textwrap.shorten(text, WIDTH, placeholder=' …')}"


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s|\n\n", docstring)[0].rstrip(".: ")


def main() -> None:
    """Write the tree into docs/DESIGN.md."""
    before = DESIGN.read_text(encoding="utf-8").partition(HEADING)[0]
    note = (
        "One line per module, from its docstring; written by `python -m benchmarks.tree`. How the modules of a package work together:\n"
        "its `__init__.py`."
    )
    DESIGN.write_text(f"{before}{HEADING}\n\n{note}\n\n```\n{tree()}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
