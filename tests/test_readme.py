"""What the README says exists, exists: files, make targets, modules; its YAML parses, its Python compiles. (e2e runs the code.)"""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", "\n".join(blocks("bash"))))))
def test_make_targets(target):
    """Every `make …` of the README is a target."""
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"-m ((?:jobs|loadtest|pipeline|serve_app)\.?[\w.]*)", README))))
def test_modules(module):
    """Every `python -m …` of ours can be found."""
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links(link):
    """Every relative link leads to a file."""
    assert (REPOSITORY / link).exists()


def test_tree_names_real_files():
    """Every file named in the tree at the end is there."""
    tree = README[README.index("## The tree") :]
    for folder, listing in re.findall(r"^(\w+)/  (.*?)(?=^\w+/  |\Z)", tree, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"\b(\w+\.py)\b", listing):
            assert (REPOSITORY / folder / name).exists(), f"{folder}/{name}"


def test_yaml_parses():
    """Every YAML snippet is YAML."""
    for block in blocks("yaml"):
        assert yaml.safe_load(block) is not None


def test_numbers_are_filled_in():
    """No placeholder is left."""
    assert "@@" not in README
