"""HTML page of a comparison, in one file: the numbers, and the photos that differ most, side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.photos import PhotoError, read_photo_within
from pipeline.masks.draw import draw_overlay
from pipeline.types import SegmentedObject

LONGEST_SIDE_PX, JPEG_QUALITY = 640, 85

_HEAD = """<!doctype html><meta charset="utf-8"><title>Comparison</title>
<style>body{font:15px system-ui,sans-serif;margin:2rem;max-width:90rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;
text-align:left;border-bottom:1px solid #ccc}img{max-width:48%;margin:.2rem}.photo{margin:2rem 0}</style>
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One photo to show.

    Args:
        agreement: 0..1, see `jobs.comparison.matching.agreement`.
        name, photo: its name below the folder, and the file.
        objects: of both sides.
        note: the difference, as text.
    """

    agreement: float
    name: str
    photo: Path
    objects: tuple[Sequence[SegmentedObject], Sequence[SegmentedObject]]
    note: str


def page(names: tuple[str, str], summary: dict[str, Any], failed: Sequence[str], worst: Sequence[Difference]) -> str:
    """The page.

    Args:
        names: of the two sides.
        summary: of `Totals.summary`.
        failed: missed thresholds, as text.
        worst: the photos to show, in order.
    """
    rows = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in summary.items())
    verdict = "<br>".join(map(html.escape, failed)) or "All thresholds are met."
    photos = "".join(map(_shown, worst))
    first, second = map(html.escape, names)
    return f"{_HEAD}<h1>{first} | {second}</h1><p>{verdict}</p><table>{rows}</table><h2>Largest differences</h2>{photos}"


def _shown(difference: Difference) -> str:
    try:
        picture = read_photo_within(difference.photo, LONGEST_SIDE_PX)
    except PhotoError as error:  # it was there when it was compared
        return f'<div class="photo">{html.escape(str(error))}</div>'
    images = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{_jpeg(draw_overlay(picture, objects))}">' for objects in difference.objects
    )
    return f'<div class="photo"><b>{html.escape(difference.name)}</b> {html.escape(difference.note)}<br>{images}</div>'


def _jpeg(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
