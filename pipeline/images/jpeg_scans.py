"""The scans of a JPEG, as libjpeg reads them: whether they are too many, and how many channels the first one has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

MAX_JPEG_SCANS = 100
"""Most scans of one JPEG. Encoders write about 10. Each scan costs a pass over the whole image, even if it has few bytes, so a small file
could keep a decoder busy for minutes (libjpeg-turbo, "Two Issues with the JPEG Standard"). For a JPEG in a TIFF, libtiff has this limit."""

_START_OF_SCAN, _END_OF_IMAGE, _FILL = 0xDA, 0xD9, 0xFF
_WITHOUT_LENGTH = frozenset({*range(0xC0), *range(0xD0, 0xD9)})
"""Bytes after 0xff that begin no segment: 0 in a scan's data, invalid markers, restarts and the start of an image."""


def has_too_many_scans(jpeg: bytes) -> bool:
    """Whether the first picture of a file has more than MAX_JPEG_SCANS scans.

    The bytes of their markers also occur in metadata and behind the picture, as in the film of a motion photo. So the markers are only
    followed if there are that many of these bytes. They are counted as by `bytes.count`, but ten times as fast where 0xff is frequent.
    """
    values = np.frombuffer(jpeg, np.uint8)
    if np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == _START_OF_SCAN)) <= MAX_JPEG_SCANS:
        return False
    scans = (at for marker, at in _segments(jpeg) if marker == _START_OF_SCAN)
    return len(list(islice(scans, MAX_JPEG_SCANS + 1))) > MAX_JPEG_SCANS


def channels_of_first_scan(jpeg: bytes) -> int:
    """Number of channels in the first scan; 0 if there is no scan. With fewer than all, a decoder stores the whole image's coefficients."""
    return next((jpeg[at + 4] for marker, at in _segments(jpeg) if marker == _START_OF_SCAN and at + 4 < len(jpeg)), 0)


def _segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of the first picture's segments. They are skipped by their length; the data of scans, to the next marker."""
    at = 2
    while (at := jpeg.find(b"\xff", at)) >= 0 and at + 1 < len(jpeg) and (marker := jpeg[at + 1]) != _END_OF_IMAGE:
        if marker == _FILL:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            yield marker, at
            at += 2 + max(int.from_bytes(jpeg[at + 2 : at + 4]), 2)
