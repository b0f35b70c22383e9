"""Reads fields of annotation files tolerantly: a BOM, numbers as text, flags as words, ids of another type."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Container, Hashable
from pathlib import Path
from typing import Any

from jobs.annotations.report import AnnotationsError

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}


OTHER_FORMATS = {
    b"\x1f\x8b": "gzip: unpack it",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    codecs.BOM_UTF16_LE: "UTF-16, as PowerShell and Excel write: save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: save it as UTF-8",
}
"""What files begin with that are given instead of annotations."""


def read_text(path: Path) -> str:
    r"""The text with \n at the end of lines. Raises: AnnotationsError: it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        known = next((f", but {kind}" for magic, kind in OTHER_FORMATS.items() if data.startswith(magic)), "")
        raise AnnotationsError(f"{path}: not UTF-8{known} ({error}).") from error


def parse_json(text: str, place: str, hint: str = "") -> Any:
    """Raises: AnnotationsError: it is not JSON, or JSON that Python cannot hold (nested too deeply, numbers of thousands of digits)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationsError(f"{place}: not JSON ({error}).{hint}") from error


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
    readings: list[Any] = [value] if isinstance(value, (int, float, str)) and not isinstance(value, bool) else []
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        readings.append(int(value[:30]))
    elif readings and not isinstance(value, str) and value == value // 1:
        readings.append(str(int(value)))
    return next((reading for reading in readings if reading in known), None)
