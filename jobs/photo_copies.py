"""Finds photos that cannot be decoded, and copies: the same picture, also in another size, format or quality.

file ─▶ decoded, reduced ─▶ thumbnail ─▶ nearest others, coarsely ─▶ same picture if no cell differs much

Crops, mirrored and edited copies are not found. Frames of a fixed camera are different pictures if something visible moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.command_line import progress
from jobs.photos import PhotoError, read_stored

SIDE, COARSE = 24, 8
"""Cells of a thumbnail's side, for the comparison and for the search."""
MAX_MEAN, MAX_CELL = 4.5, 42
"""Largest differences of the same picture, of 255: mean, and of one channel of a cell. Measured on 220 photos: at most 4.4 and 41 in copies
at 0.25 to 1.6 times the size and JPEG qualities 30 to 90; at least 15.7 and 118 between different photos."""
MIN_CONTRAST = 4.0
"""Smallest standard deviation of a thumbnail, of 255; blank pictures all look alike."""
MAX_DISTANCE = MAX_MEAN * MAX_CELL * COARSE**2
"""Largest squared distance of the coarse thumbnails of the same picture, which follows from the two."""
NEAREST, BLOCK = 16, 512
"""Photos that are compared cell by cell with each photo, and photos of one step of the search."""
THREADS = 4


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Thumbnails of photos, and the photos that cannot be decoded.

    Args:
        bgr: (N, SIDE, SIDE, 3) uint8; zeros for photos that cannot be decoded.
        changed_unseen: (N,) bool, whether rotating upright changes the pixels but not the size.
        faults: messages, one for each photo that cannot be decoded.
    """

    bgr: NDArray[np.uint8]
    changed_unseen: NDArray[np.bool_]
    faults: list[str]

    @property
    def broken(self) -> str:
        """A message about photos that cannot be decoded; empty if all can."""
        if not self.faults:
            return ""
        return (
            f"{len(self.faults):,} of {len(self.bgr):,} photos cannot be decoded, first: {self.faults[0]}. jobs.check_data names all. "
            "Replace them, or take them out of the annotations."
        )


def thumbnails(photos: Sequence[Path], white_level: int | None = None) -> Thumbnails:
    """Decode photos, in their order."""
    bgr, changed_unseen = np.zeros((len(photos), SIDE, SIDE, 3), np.uint8), np.zeros(len(photos), np.bool_)
    faults: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(partial(_thumbnail, white_level=white_level), photos)
        for place, found in enumerate(progress(read, total=len(photos))):
            if isinstance(found, PhotoError):
                faults.append(str(found))
            else:
                bgr[place], changed_unseen[place] = found
    return Thumbnails(bgr, changed_unseen, faults)


def _thumbnail(photo: Path, white_level: int | None) -> tuple[NDArray[np.uint8], bool] | PhotoError:
    try:
        stored = read_stored(photo, 4 * SIDE, white_level)
    except PhotoError as error:
        return error
    return np.asarray(cv2.resize(stored.upright_bgr, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8), stored.changes_unseen


def originals(photos: NDArray[np.uint8], others: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """For each photo the place of another one with the same picture, -1 if there is none.

    Args:
        photos: thumbnails, (N, SIDE, SIDE, 3).
        others: thumbnails to search in; None: the photos before each one.
    """
    among = photos if others is None else others
    found, coarse = np.full(len(photos), -1), _coarse(among)
    squares = (coarse**2).sum(1)
    for start in range(0, len(photos), BLOCK):
        block = photos[start : start + BLOCK]
        own, ends = _coarse(block), len(among) if others is not None else start + len(block)
        distances = squares[None, :ends] - 2 * own @ coarse[:ends].T + (own**2).sum(1)[:, None]
        for row in np.flatnonzero((distances <= MAX_DISTANCE).any(1)):
            near = np.flatnonzero(distances[row] <= MAX_DISTANCE)
            near = near if others is not None else near[near < start + row]
            nearest = near[np.argsort(distances[row, near], kind="stable")[:NEAREST]]
            found[start + row] = min((place for place in nearest if _same(block[row], among[place])), default=-1)
    return found


def _coarse(bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
    step = SIDE // COARSE
    cells: NDArray[np.float32] = bgr.reshape(-1, COARSE, step, COARSE, step, 3).mean((2, 4, 5), dtype=np.float32)
    return cells.reshape(len(bgr), COARSE * COARSE)


def _same(photo: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    apart = np.abs(photo.astype(np.int16) - other)
    return bool(apart.mean() <= MAX_MEAN and apart.max() <= MAX_CELL and min(photo.std(), other.std()) >= MIN_CONTRAST)
