"""What the README, docs/ and other pages name exists: files, headings, make targets, modules, options; YAML parses. (e2e runs code.)"""

import importlib
import importlib.util
import re
import sys

import pytest
import yaml

from benchmarks.tree import tree
from deployments.settings import Settings
from serve_app.config_file import check_document
from tests.support.pages import EVERYTHING, PAGES, REPOSITORY, blocks, headings

PASSES_OPTIONS_TO = {"jobs.sweep": ("jobs.finetune",)}
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", "\n".join(blocks("bash", EVERYTHING))))))
def test_make_targets(target):
    """Every `make …` of the README is a target."""
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"-m ((?:jobs|loadtest|pipeline|serve_app|benchmarks)\.?[\w.]*)", EVERYTHING)))
)
def test_modules(module):
    """Every `python -m …` of ours can be found."""
    assert importlib.util.find_spec(module) is not None


def commands():
    """Of every `python -m …` of ours: the module, its subcommand if any, and the options that follow."""
    text = "\n".join(block.replace("\\\n", " ") for block in blocks("bash", EVERYTHING)) + "\n".join(
        re.findall(r"`[^`\n]+`", EVERYTHING)
    )
    found = {}
    for module, subcommand, rest in re.findall(
        r"-m ((?:jobs|loadtest|pipeline|serve_app)[\w.]*)(?: ([a-z]+)(?= |$))?([^\n`#]*)", text
    ):
        found.setdefault((module, subcommand), set()).update(re.findall(r"(?<= )--[a-z][\w-]*", rest))
    found.pop(("loadtest", "locust"))  # its options are Locust's
    return sorted((module, subcommand, sorted(options)) for (module, subcommand), options in found.items() if options)


@pytest.mark.parametrize(
    ("module", "subcommand", "options"), commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_options(module, subcommand, options, monkeypatch, capsys):
    """Every option that a page shows is one that the command has."""
    monkeypatch.setattr(sys, "argv", [module, *([subcommand] if subcommand else []), "--help"])
    for name in (module, *PASSES_OPTIONS_TO.get(module, ())):
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(f"{name}.__main__" if name == "loadtest" else name).main()
    assert set(options) <= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links(page):
    """Every relative link leads to a file, and to a heading in it."""
    for link in set(re.findall(r"\]\(([^)]+)\)", PAGES[page])) - set(re.findall(r"https?://[^)]+", PAGES[page])):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), link


def test_tree_is_current():
    """The tree in docs/DESIGN.md is what `python -m benchmarks.tree` writes; each module's first sentence fits its line."""
    assert tree() in PAGES[REPOSITORY / "docs/DESIGN.md"]
    assert "…" not in tree()


SERVICE = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text(encoding="utf-8"))


def merged(document, *changes):
    """A copy of a document with others merged in; lists of deployments are merged by name."""
    result = dict(document)
    for change in changes:
        for key, value in change.items():
            result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


@pytest.mark.parametrize("snippet", blocks("yaml", EVERYTHING), ids=lambda text: text.split(":")[0].strip())
def test_yaml_goes_into_the_configuration(snippet):
    """Every YAML snippet, put where its page says, is a valid configuration; the check raises for others."""
    document = yaml.safe_load(snippet)
    (application,) = SERVICE["applications"]
    if isinstance(document, list):
        named = {one["name"]: one for one in document}
        changes = {"deployments": [merged(one, named.get(one["name"], {})) for one in application["deployments"]]}
    elif set(document) <= set(Settings.model_fields):
        changes = {"args": document}
    else:
        changes = {}
    whole = merged(SERVICE, {} if changes else document, {"applications": [merged(application, changes)]})
    check_document(whole)


def test_settings_exist():
    """Every `section.setting` that a page names is one, and every `section.setting: value` is valid."""
    sections = "|".join(Settings.model_fields)
    found = set(re.findall(rf"`(?:args\.)?((?:{sections})\.[a-z_.]+)(?:: ([^`]+))?`", EVERYTHING))
    assert len(found) > 20
    for name, value in found:
        fields = Settings.model_fields
        for part in name.split("."):
            assert part in fields, name
            fields = getattr(fields[part].annotation, "model_fields", {})
        if value:
            document = yaml.safe_load(value)
            for part in reversed(name.split(".")):
                document = {part: document}
            Settings.model_validate(document)
