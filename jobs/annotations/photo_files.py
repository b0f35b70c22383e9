"""Finds the photos that annotations name, and reads their sizes.

name as written ─▶ with forward slashes, a URL without its query, in both Unicode forms ─▶ without leading folders: the longest rest that
exists
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jobs.annotations.report import AnnotationsError, Report
from jobs.photos import PhotoError, upright_size

MAX_NAMED = 3
UPLOADED = re.compile("[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded photos."""
ON_ITS_SIDE = (
    "If it was annotated as stored, annotate it upright, or remove the orientation from the file (exiftool -Orientation= FILE). If width "
    "and height alone are exchanged, remove them from the annotations."
)
LABEL_STUDIO = "/?d="
"""In the names of photos that Label Studio serves from its own disk: `/data/local-files/?d=photos/a.jpg`."""


def find_photos(names: Sequence[str], folder: Path, report: Report) -> dict[str, str]:
    """Find the file of each photo.

    Args:
        names: as the annotations write them.
        folder: to which they are relative.
        report: records names that differ from their files.
    Returns:
        For each name the path below `folder`; for a missing file, the name itself.
    Raises:
        AnnotationsError: two names with different folders lead to the same file.
    """
    found: dict[str, str] = {}
    cut: dict[str, str] = {}
    for name in dict.fromkeys(names):
        path, how = _find(name, folder)
        found[name] = path
        if how is None:
            continue
        if path in cut and _normal(cut[path]) != _normal(name):
            raise AnnotationsError(f"{report.file}: {cut[path]} and {name} are both {path} in {folder}.")
        cut[path] = name
        report.repair(f"photos found {how}", f"{name} is {path}")
    twice = next((name for name, path in found.items() if path in cut and _normal(cut[path]) != _normal(name)), None)
    if twice is not None:
        raise AnnotationsError(f"{report.file}: {twice} and {cut[found[twice]]} are both {found[twice]} in {folder}.")
    return found


def _find(name: str, folder: Path) -> tuple[str, str | None]:
    """Path below the folder, and how it was found; None if the name matches exactly or no file is found."""
    if _is_file(folder / name):
        return Path(name).as_posix(), None
    parts = [part for part in _normal(name).split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for path in _spellings("/".join(parts[start:])):
            if _is_file(folder / path):
                return path, "without the first folders of their names" if start else "under another spelling of their names"
    uploaded = parts[-1].removeprefix(prefix[0]) if parts and (prefix := UPLOADED.match(parts[-1])) else name
    if uploaded != name and _is_file(folder / uploaded):
        return uploaded, "without the prefix of Label Studio's uploads"
    return name, None


def _normal(name: str) -> str:
    path = name.partition("?")[0] if "://" in name else name.replace(LABEL_STUDIO, "/")
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


def _spellings(path: str) -> Iterator[str]:
    """A path in both Unicode normal forms (macOS decomposes names), and percent-decoded."""
    for text in dict.fromkeys((path, unquote(path))):
        yield from dict.fromkeys((text, unicodedata.normalize("NFD", text)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def missing_photos(photos: Sequence[dict[str, Any]], folder: Path) -> str | None:
    """A message about photos that are missing in the folder; None if all exist."""
    missing = [photo["file_name"] for photo in photos if not _is_file(folder / photo["file_name"])]
    if not missing:
        return None
    hint = _hint(_normal(missing[0]).rsplit("/", 1)[-1], folder)
    return f"{len(missing)} of {len(photos)} photos are missing in {folder}, first: {', '.join(missing[:MAX_NAMED])}{hint}"


def _hint(name: str, folder: Path) -> str:
    """What to do about a missing photo."""
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if _is_file(path)]
    if found := next((path for path in files if path.name.lower() == name.lower()), None):
        return (
            f". {name} is in {found.parent}: name that folder" if found.name == name else f". There is {found}: capitals differ"
        )
    if found := next((path for path in files if path.stem.lower() in (name.lower(), Path(name).stem.lower())), None):
        return f". There is {found}: the suffix differs"
    return ". Copy them there, or take them out of the annotations"


def sized(
    photo: dict[str, Any], size: tuple[int | None, int | None], folder: Path, place: str, *, readable: bool = False
) -> dict[str, Any]:
    """The photo's entry with width and height of the upright photo.

    Args:
        photo: with `file_name`.
        size: annotated width and height; None if missing.
        folder: that `file_name` is relative to; a photo that is not there is taken to be as annotated.
        place: for messages.
        readable: refuse a photo that cannot be read; else it is taken to be as annotated, and who reads its pixels says so.
    Raises:
        AnnotationsError: the photo has another size, or none is annotated and it cannot be read.
    """
    name = photo["file_name"]
    width, height = size
    if width and height and not _is_file(folder / name):
        return photo | {"width": width, "height": height}
    try:
        upright = upright_size(folder / name)
    except PhotoError as error:
        if not (width and height):
            raise AnnotationsError(f"{place} has no width and height. {error}.") from error
        if readable:
            raise AnnotationsError(f"{place}: {error}.") from error
        return photo | {"width": width, "height": height}
    if width and height and upright != (width, height):
        remedy = ON_ITS_SIDE if upright == (height, width) else "Annotate this photo, or use the one that was annotated."
        raise AnnotationsError(
            f"{place}: {name} is {upright[0]} x {upright[1]} pixels upright but is annotated as {width} x {height}: its "
            f"outlines would lie in the wrong place. {remedy}"
        )
    return photo | {"width": upright[0], "height": upright[1]}
