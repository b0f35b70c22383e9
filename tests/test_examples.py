"""The examples' own logic."""

import importlib.util
from pathlib import Path

from rtmdet_ins_client import Found, Result

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_label_studio_gets_a_region_for_each_ring():
    """Points in percent, with score and label; the photo's size."""
    label_studio = load("label_studio")
    found = Found("person", 0.9, (0, 0, 1, 1), [[0.1, 0.2, 0.5, 0.2, 0.5, 0.6], [0.7, 0.7, 0.8, 0.7, 0.8, 0.8]], [])
    first, second = label_studio.regions(Result([found], (200, 100)), "label", "image")
    assert first["value"]["points"] == [[10, 20], [50, 20], [50, 60]]
    assert second["value"]["polygonlabels"] == ["person"]
    assert (first["original_width"], first["original_height"], first["score"]) == (200, 100, 0.9)
