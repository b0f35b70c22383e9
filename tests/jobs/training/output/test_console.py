"""What people see of a run."""

import importlib
import shlex

import pytest

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import Report
from jobs.training.output.console import (
    FOR_THE_FILE,
    MEASURED_AT,
    ap_by_step,
    by_label_table,
    draw_curve,
    too_little_movement,
    what_next,
)


class Scalar:
    """Stands in for mmengine's HistoryBuffer."""

    def __init__(self, *values):
        self.data = values, [1] * len(values)


def test_ap_by_label_is_a_table():
    measured = {
        "box_ap": 0.1,
        "mask_ap": 0.05,
        "box_ap_small": 0.02,
        "mask_ap_small": 0.01,
        "mask_ap/window": 0.2,
        "box_ap/window": 0.3,
        "mask_ap/car": None,
        "box_ap/car": None,
        "objects/window": 2126,
        "objects/all": 3,
    }
    assert by_label_table(measured).splitlines() == [
        "AP by label      box   mask  objects trained on",
        "all             10.0    5.0",
        "small objects    2.0    1.0",
        "window          30.0   20.0     2126",
        "car                -      -",
    ]


@pytest.mark.parametrize("validated", [False, True], ids=["without --val", "with --val"])
def test_the_last_lines_are_commands_that_parse(tmp_path, validated):
    """Of folders with spaces, too."""
    folder = tmp_path / "my runs"
    val = Annotations(folder / "val.json", tmp_path / "my photos", ("a",), 1, Report("val")) if validated else None
    curve, *lines = what_next(folder / "final.safetensors", val).splitlines()
    assert curve.startswith(f"Curve: {folder / 'curve.png'}")
    assert len(lines) == (4 if validated else 2)
    for line in lines:
        _, _, module, *arguments = shlex.split(line.split(": ", 1)[1])
        importlib.import_module(module)._parser().parse_args(arguments)


@pytest.mark.parametrize("scalars", [{}, {"train/loss": Scalar(3.0, 2.0)}], ids=["nothing", "loss alone"])
def test_a_curve_needs_a_loss(tmp_path, scalars):
    draw_curve(scalars, 2, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists() == bool(scalars)


def test_a_curve_of_loss_and_ap(tmp_path):
    """AP at the steps where it was measured; those before a checkpoint without steps are left out."""
    aps = {"val/box_ap": Scalar(0.1, 0.2, 0.3), "val/mask_ap": Scalar(0.0, 0.1, 0.2)}
    scalars = {"train/loss": Scalar(*range(5)), **aps, MEASURED_AT: Scalar(1.0, 4.0, 5.0)}
    assert ap_by_step(scalars) == {"box": ([1, 4, 5], [0.1, 0.2, 0.3]), "mask": ([1, 4, 5], [0.0, 0.1, 0.2])}
    assert ap_by_step(aps | {MEASURED_AT: Scalar(5.0)})["box"] == ([5], [0.3])
    assert ap_by_step(aps) == {}
    draw_curve(scalars, 5, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_too_little_learning_for_fresh_classes_is_reported():
    """Only where classes start fresh."""
    assert "Train for 310 steps and more, or with a higher --lr" in too_little_movement(9.67e-5, 120, ["cat"])
    assert too_little_movement(9.67e-5, 120, []) is None
    assert too_little_movement(2e-3, 120, ["cat"]) is None


def test_measurements_are_reported_once():
    """mmengine's own line of them, and what it says of files, is for the log."""
    assert FOR_THE_FILE.match("Iter(val) [30/30]  mask_ap: 0.1")
    assert FOR_THE_FILE.match("The best checkpoint with 0.1")
    assert not FOR_THE_FILE.match("Iter(train) [1/2]")
    assert not FOR_THE_FILE.match("val: box 9.7")
