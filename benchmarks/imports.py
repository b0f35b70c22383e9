"""Draws the packages, the subpackages of pipeline and who imports whom, from the code, as Mermaid: the drawing in docs/DESIGN.md.

    python -m benchmarks.imports

`pipeline.types` and `pipeline.errors` are left out: every package may import them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SHIPPED = ("serve_app", "deployments", "jobs", "loadtest")
SUBPACKAGES = ("images", "model", "inference", "masks")


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; `from package import name` counts as `package.name` where that is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = REPOSITORY / node.module.replace(".", "/")
            modules = [alias.name for alias in node.names if is_module(folder / alias.name)]
            yield from (f"{node.module}.{name}" for name in modules)
            if len(modules) < len(node.names):
                yield node.module


def is_module(path: Path) -> bool:
    """A path without its suffix: a folder, or a file of Python."""
    return path.is_dir() or path.with_suffix(".py").is_file()


def place(module: str) -> str | None:
    """The node of the drawing that a module belongs to."""
    package, _, rest = module.partition(".")
    if package in SHIPPED:
        return package
    subpackage = rest.partition(".")[0]
    return f"pipeline.{subpackage}" if package == "pipeline" and subpackage in SUBPACKAGES else None


def edges() -> list[tuple[str, str]]:
    """(who imports, what), sorted."""
    found = set()
    for package in (*SHIPPED, "pipeline"):
        for path in (REPOSITORY / package).rglob("*.py"):
            here = place(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
            found |= {(here, there) for module in imported(path) if here and (there := place(module)) and there != here}
    return sorted(found)


def drawing() -> str:
    """Mermaid: an arrow for every pair of which one imports the other."""
    lines = ["flowchart TD", *(f"    {package}" for package in SHIPPED), "    subgraph pipeline"]
    lines += [f"        pipeline.{subpackage}[{subpackage}]" for subpackage in SUBPACKAGES]
    return "\n".join([*lines, "    end", *(f"    {here} --> {there}" for here, there in edges())])


if __name__ == "__main__":
    print(drawing())
