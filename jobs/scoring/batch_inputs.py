"""What a batch is made of: a folder of photos, or a CSV with an `image` column; and each photo as the service takes it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pybase64

SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .tif .tiff .bmp .gif .avif".split())
"""File names taken from a folder: the formats of `pipeline.images.decode`."""


class InputsError(ValueError):
    """The folder or the CSV cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of a batch.

    Args:
        name: the path below the folder, or the cell of the CSV.
        row: of the CSV, from 0; 0 of a file in a folder.
        place: the file; None of a URL.
    """

    name: str
    row: int
    place: Path | None

    def text(self) -> str:
        """Base64 of the file, or the URL.

        Raises:
            OSError: the file cannot be read.
        """
        return self.name if self.place is None else pybase64.b64encode(self.place.read_bytes()).decode()


def photos_of(source: Path) -> list[Photo]:
    """Every photo of a batch once, in order.

    Args:
        source: a folder, searched to its depth, or a CSV file with an `image` column of URLs or of paths from the CSV's folder.
    Raises:
        InputsError: neither, or nothing in it.
    """
    if source.suffix.lower() in SUFFIXES and source.is_file():
        raise InputsError(f"{source} is one photo: name its folder, or a CSV that lists it")
    try:
        found = _of_folder(source) if source.is_dir() else _of_csv(source)
        photos = list({photo.name: photo for photo in found}.values())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputsError(f"{source}: cannot be read as a folder or a CSV: {error}") from error
    if not photos:
        raise InputsError(f"{source}: there is no photo ({', '.join(sorted(SUFFIXES))})")
    return photos


def _of_folder(folder: Path) -> Iterator[Photo]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield Photo(path.relative_to(folder).as_posix(), 0, path)


def _of_csv(file: Path) -> Iterator[Photo]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if "image" not in (rows.fieldnames or ()):
            hint = (
                "; columns must be separated by commas"
                if len(rows.fieldnames or ()) == 1 and ";" in (rows.fieldnames or "")[0]
                else ""
            )
            raise InputsError(
                f"{file}: there is no column `image`; the columns are {', '.join(rows.fieldnames or ['none'])}{hint}"
            )
        for number, row in enumerate(rows):
            if name := (row["image"] or "").strip():
                yield Photo(name, number, None if name.lower().startswith(("http://", "https://")) else file.parent / name)
