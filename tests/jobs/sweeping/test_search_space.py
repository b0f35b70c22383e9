"""What --vary says, and the settings of trials."""

import pytest

from jobs.sweep import SPACE
from jobs.sweeping.search_space import Range, as_options, point_as_given, read_variation, trial_settings


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("lr=5e-4..8e-3", ("lr", Range(0.0005, 0.008))),
        ("batch-size=2..8", ("batch-size", Range(2, 8))),
        ("clip-grad=1..20", ("clip-grad", Range(1.0, 20.0))),
        ("epochs=5..20", ("epochs", Range(5, 20))),
        ("image-size=320..640", ("image-size", Range(320, 640, step=32))),
        ("freeze=none,backbone.stem", ("freeze", ["none", "backbone.stem"])),
        ("no-flip=on,none", ("no-flip", ["on", "none"])),
    ],
)
def test_variations(text, read):
    assert read_variation(text) == read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "expected NAME=LOW..HIGH or NAME=A,B,C") for text in ("lr", "lr=", "=1..2")),
        *(
            (text, "LOW..HIGH are two numbers, the smaller one first")
            for text in ("lr=2..1", "lr=a..b", "lr=1..", "lr=1..inf", "lr=nan..1")
        ),
        ("workers=0.5..2", "LOW..HIGH are two whole numbers"),
        ("freeze=1..2", "--freeze is not a number; give its values as A,B,C"),
        ("colour=1,2", "jobs.finetune has no option --colour"),
        ("best=mask_ap,box_ap", "jobs.finetune has no option --best"),
        *(
            (f"{name}=1,2", "is the same in all trials")
            for name in ("val-share", "val-every", "best-metric", "train", "work-dir")
        ),
    ],
)
def test_what_cannot_be_varied(text, said):
    with pytest.raises(ValueError, match=f"--vary {text}: .*{said}"):
        read_variation(text)


def test_a_trials_settings(tiny_coco):
    """Values as jobs.finetune reads them; what is left out has its default; measurements are often enough for ASHA."""
    base = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco), "--val-share", "0.3", "--work-dir", "x"]
    chosen = {
        "lr": 0.001,
        "freeze": "backbone.stem+backbone.stage1",
        "no-flip": "on",
        "mosaic": "none",
        "scale-jitter": "0.8+1.2",
    }
    settings = trial_settings([*base, "--steps", "40"], chosen)
    assert (settings.lr, settings.no_flip, settings.mosaic, settings.val_every) == (0.001, True, 0.5, 10)
    assert settings.freeze == ("backbone.stem", "backbone.stage1")
    assert settings.scale_jitter == (0.8, 1.2)
    assert as_options({"freeze": "none"}) == []
    assert [read_variation(text)[0] for text in SPACE] == ["lr", "mosaic", "scale-jitter"]


@pytest.mark.parametrize(
    ("more", "vary", "point"),
    [
        ([], SPACE, {"lr": 0.002, "mosaic": 0.5, "scale-jitter": "0.5+2"}),
        (["--lr", "5e-3", "--freeze", "neck"], ["lr=1e-3..1e-2", "freeze=none,backbone"], {"lr": 0.005, "freeze": "none"}),
        (
            [],
            ["mosaic=0,0.50", "no-flip=on,none", "scale-jitter=0.5+2,1+1"],
            {"mosaic": "0.50", "no-flip": "none", "scale-jitter": "0.5+2"},
        ),
        ([], ["lr=1e-3..1e-2", "image-size=320,480"], None),
        ([], ["lr=3e-3..1e-2"], None),
        ([], ["ema=0.01..0.5"], None),
    ],
)
def test_the_point_of_the_settings_as_given(tiny_coco, more, vary, point):
    """The first trial, whose settings are those without --vary; None if that is not among the values."""
    base = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco), "--val-share", "0.3", "--work-dir", "x"]
    space = dict(read_variation(text) for text in vary)
    assert point_as_given([*base, *more], space) == point
    if point:
        assert trial_settings([*base, *more], point) == trial_settings([*base, *more], {})
