"""What a sweep varies: --vary as ranges and choices, and the settings of a trial from values of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.training.settings import FinetuneSettings, settings_from_args

LOG_SCALE_FROM = 10
"""A range is on a logarithmic scale if its end is so many times its beginning."""
VALS_A_RUN = 4
"""Measurements in a trial where --val-every does not say."""
LEFT_OUT, SWITCHED_ON = "none", "on"


def read_variation(text: str) -> tuple[str, Any]:
    """`lr=1e-3..1e-2` to ("lr", (0.001, 0.01)); `freeze=none,backbone` to ("freeze", ["none", "backbone"]).

    Raises:
        ValueError: it is neither.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise ValueError(f"--vary {text}: expected NAME=LOW..HIGH or NAME=A,B,C, such as lr=5e-4..8e-3")
    low, dots, high = values.partition("..")
    if not dots:
        return name, values.split(",")
    numbers = _number(low), _number(high)
    if None in numbers or not numbers[0] < numbers[1]:  # type: ignore[operator]
        raise ValueError(f"--vary {text}: LOW..HIGH are two numbers, the smaller one first")
    return name, numbers


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


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


def point_as_given(of_finetune: Sequence[str], space: dict[str, Any]) -> dict[str, Any] | None:
    """The trial whose settings are those given (or the defaults), without --vary; None if --vary excludes one of their values."""
    settings = settings_from_args(of_finetune)
    point: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, list):
            same = (value for value in values if settings_from_args([*of_finetune, *as_options({name: value})]) == settings)
            point[name] = next(same, None)
        else:
            value = getattr(settings, name.replace("-", "_"))
            point[name] = value if isinstance(value, int | float) and values[0] <= value <= values[1] else None
    return None if None in point.values() else point
