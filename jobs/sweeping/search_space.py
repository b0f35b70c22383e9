"""What a sweep varies: --vary as ranges and choices, and the settings of a trial from values of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from jobs.training.options import flag_of, type_of
from jobs.training.settings import FinetuneSettings, settings_from_args

TABLE = "trials.csv"
LOG_SCALE_FROM = 10
"""A range is on a logarithmic scale if its end is so many times its beginning."""
VALS_A_RUN = 4
"""Measurements in a trial where --val-every does not say."""
LEFT_OUT, SWITCHED_ON = "none", "on"
FIXED = frozenset(
    "train train-images val val-images val-share val-group val-every best-metric strict work-dir processes resume".split()
)
"""Options that are the same in all trials: they are compared by one metric, on the same photos, and each has a folder of its own."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones, multiples of `step`, where `low` is an int."""

    low: int | float
    high: int | float
    step: int = 1

    @property
    def is_log(self) -> bool:
        """Whether values are drawn on a logarithmic scale; never where only multiples of a step are."""
        return self.step == 1 and self.low > 0 and self.high / self.low >= LOG_SCALE_FROM


Values = list[str] | Range


def read_variation(text: str) -> tuple[str, Values]:
    """`lr=1e-3..1e-2` to ("lr", Range(0.001, 0.01)); `freeze=none,backbone` to ("freeze", ["none", "backbone"]).

    Raises:
        ValueError: it is neither, or jobs.finetune has no such option, or it is the same in all trials, or no number to give a range of.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ValueError(f"--vary {text}: expected NAME=LOW..HIGH or NAME=A,B,C, such as lr=5e-4..8e-3")
    options = {flag_of(entry.name): entry for entry in fields(FinetuneSettings)}
    entry = options.get(f"--{name}")
    if entry is None:
        raise ValueError(f"--vary {text}: jobs.finetune has no option --{name}")
    if name in FIXED:
        raise ValueError(f"--vary {text}: --{name} is the same in all trials, which are compared by what they measure")
    low, dots, high = values.partition("..")
    if not dots:
        return name, values.split(",")
    kind = type_of(get_type_hints(FinetuneSettings)[entry.name])
    if kind not in (int, float):
        raise ValueError(f"--vary {text}: --{name} is not a number; give its values as A,B,C")
    try:
        ends = Range(kind(low), kind(high), entry.metadata["option"].step)
    except ValueError:
        ends = None
    if ends is None or not ends.low < ends.high < math.inf:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--vary {text}: LOW..HIGH are two {numbers}, the smaller one first")
    return name, ends


def read_space(variations: Sequence[str]) -> dict[str, Values]:
    """Values by name, from the texts of --vary.

    Raises:
        ValueError: one cannot be read (`read_variation`), or two have the same name.
    """
    space: dict[str, Values] = {}
    for text in variations:
        name, values = read_variation(text)
        if name in space:
            raise ValueError(f"--vary {text}: --{name} is given twice")
        space[name] = values
    return space


def checked_values(values: Values) -> list[Any]:
    """Values of which all are good where these are: both ends of a range, or all choices."""
    return [values.low, values.high] if isinstance(values, Range) else values


def as_options(chosen: dict[str, Any]) -> list[str]:
    """Settings of a trial as options of jobs.finetune."""
    options = []
    for name, value in chosen.items():
        if value == SWITCHED_ON:
            options.append(f"--{name}")
        elif value != LEFT_OUT:
            options += [f"--{name}", *str(value).split("+")]
    return options


def trial_settings(of_finetune: Sequence[str], chosen: dict[str, Any]) -> FinetuneSettings:
    """The settings of a trial but for its work folder; measured often enough to be stopped early."""
    settings = settings_from_args([*of_finetune, *as_options(chosen)])
    if settings.val_every is None and settings.steps:
        settings = replace(settings, val_every=max(settings.steps // VALS_A_RUN, 1))
    return settings


def point_as_given(of_finetune: Sequence[str], space: Mapping[str, Values]) -> dict[str, Any] | None:
    """The trial whose settings are those given (or the defaults), without --vary; None if --vary excludes one of their values."""
    settings = settings_from_args(of_finetune)
    point: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, list):
            same = (value for value in values if settings_from_args([*of_finetune, *as_options({name: value})]) == settings)
            point[name] = next(same, None)
        else:
            value = getattr(settings, name.replace("-", "_"))
            point[name] = value if isinstance(value, int | float) and values.low <= value <= values.high else None
    return None if None in point.values() else point
