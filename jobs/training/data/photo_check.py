"""Decodes every photo before a training: faults end it; copies and odd orientations are reported.

photos ─▶ thumbnails ─▶ photos that cannot be decoded ─▶ AnnotationsError
                    └─▶ copies, rotated photos ─▶ remarks; --val-share keeps copies on one side
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jobs.annotations.datasets import Annotations
from jobs.annotations.photo_files import missing_photos
from jobs.annotations.report import AnnotationsError
from jobs.photo_copies import Thumbnails, originals, thumbnails


def check_photos(train: Annotations, val: Annotations | None, white_level: int | None) -> list[str]:
    """Decode the photos of both sets.

    Args:
        white_level: as in DecodeLimits.
    Returns:
        Remarks: validation photos that are copies of training photos, and photos that may be annotated as stored.
    Raises:
        AnnotationsError: a photo cannot be decoded.
    """
    photos, others = photo_files(train), photo_files(val) if val else []
    found = _decoded([*photos, *others], white_level)
    remarks = list(_rotated([*photos, *others], found))
    place_of = originals(found.bgr[len(photos) :], found.bgr[: len(photos)])
    if copies := [(others[copy], photos[place_of[copy]]) for copy in np.flatnonzero(place_of >= 0)]:
        copy, original = copies[0]
        first = str(copy) if copy == original else f"{copy} is {original}"
        remarks.append(
            f"Warning: {len(copies):,} validation photos are also training photos, or copies of them, so AP will be too high; first: "
            f"{first}"
        )
    return remarks


def copies_within(part: Annotations, white_level: int | None) -> tuple[dict[str, str], list[str]]:
    """Decode the photos of a set, to split it.

    Args:
        white_level: as in DecodeLimits.
    Returns:
        Names of photos that are copies of others, with the names of those; and remarks.
    Raises:
        AnnotationsError: a photo is missing or cannot be decoded.
    """
    entries = part.document()["images"]
    if missing := missing_photos(entries, part.images):
        raise AnnotationsError(f"{part.report.file}: {missing}.")
    photos, names = photo_files(part), [photo["file_name"] for photo in entries]
    found = _decoded(photos, white_level)
    place_of = originals(found.bgr)
    copies = {names[copy]: names[place_of[copy]] for copy in np.flatnonzero(place_of >= 0)}
    remarks = list(_rotated(photos, found))
    if copies:
        first = " of ".join(next(iter(copies.items())))
        remarks.append(f"{len(copies):,} photos are copies of others and stay on one side, first: {first}")
    return copies, remarks


def photo_files(part: Annotations) -> list[Path]:
    """The photo files of a set, in its order."""
    return [part.images / photo["file_name"] for photo in part.document()["images"]]


def _decoded(photos: Sequence[Path], white_level: int | None) -> Thumbnails:
    found = thumbnails(photos, white_level)
    if found.broken:
        raise AnnotationsError(found.broken)
    return found


def _rotated(photos: Sequence[Path], found: Thumbnails) -> Iterator[str]:
    if rotated := np.flatnonzero(found.changed_unseen).tolist():
        yield (
            f"Note: {len(rotated):,} photos are rotated or mirrored by their EXIF orientation, of the same size as before. Look at "
            f"{photos[rotated[0]]}: were the outlines drawn on the upright photo? jobs.check_data shows them."
        )
