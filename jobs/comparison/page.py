"""HTML page of a comparison, in one file: the numbers, and the photos that differ most, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import html_page
from jobs.photos import PhotoError, read_photo_within
from pipeline.masks.draw import draw_overlay
from pipeline.types import SegmentedObject

LONGEST_SIDE_PX = 640


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
    parts = [
        html_page.text_block("\n".join(failed) or "All thresholds are met."),
        html_page.table((), summary.items()),
        html_page.heading("Largest differences"),
    ]
    return html_page.page(" | ".join(names), [*parts, *(part for difference in worst for part in _shown(difference, names))])


def _shown(difference: Difference, names: tuple[str, str]) -> Iterator[str]:
    yield html_page.paragraph(f"{difference.name} {difference.note}")
    try:
        picture = read_photo_within(difference.photo, LONGEST_SIDE_PX)
    except PhotoError as error:  # it was there when it was compared
        yield html_page.text_block(str(error))
        return
    drawn = zip(names, difference.objects, strict=True)
    yield html_page.gallery(html_page.picture(draw_overlay(picture, objects), name) for name, objects in drawn)
