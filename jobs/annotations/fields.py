"""Parses fields of annotation files tolerantly: numbers written as text, flags as words, ids of another type."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable
from typing import Any

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}


def number(value: Any) -> float | None:
    """A finite number, also as text or as the only item of a list; None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def pixels(value: Any) -> int | None:
    """A width or height above 0, such as 400, "400" or "400px"; None for anything else."""
    found = number(value.strip().removesuffix("px") if isinstance(value, str) else value)
    return int(found) if found and found > 0 and found == int(found) else None


def flag(value: Any) -> bool | None:
    """True or false in any spelling; a missing one is False. None for anything else."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return {0.0: False, 1.0: True}.get(value) if isinstance(value, (bool, int, float)) else None


def known_id(value: Any, known: Container[Hashable]) -> Any:
    """The id in `known` that is meant: 7, "7" and 7.0 are the same id. None if there is none."""
    readings: list[Any] = [value] if isinstance(value, (int, float, str)) else []
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        readings.append(int(value[:30]))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        readings.append(str(int(value)))
    return next((reading for reading in readings if reading in known), None)
