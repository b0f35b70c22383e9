"""Parses a cell of a table of images: base64, a data: URL, a URL that the service fetches, or a file on this machine."""

from __future__ import annotations

import binascii
import re
from pathlib import Path
from urllib.parse import unquote

import pybase64

from pipeline.images.decode import FORMAT_MAGIC

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_HEAD_CHARS = 64
_LONGEST_PATH_CHARS = 4096
AZUREML = frozenset({"azureml", "amldatastore"})


class Unreadable(ValueError):
    """A cell names no image; the message gives the reason."""


def image_of_cell(cell: str | None, folder: Path) -> Path | str | Unreadable:
    """Parse one cell.

    Args:
        cell: text of the cell; None if the row is too short.
        folder: of the table; paths start there.
    Returns:
        Text for the service, without line breaks and blanks, or a file; Unreadable if it is neither, or the cell is empty.
    """
    text = (cell or "").strip()
    if not text:
        return Unreadable("The cell is empty.")
    if "\0" in text:
        return Unreadable("The cell has a zero byte.")
    if text[:5].lower() == "data:" or text[:8].lower().startswith(("http://", "https://")):
        return "".join(text.split()) if _is_utf8(text) else Unreadable("The URL is not UTF-8.")
    if scheme := _SCHEME.match(text):
        return _of_scheme(scheme[1].lower(), text, folder)
    return "".join(text.split()) if text.isascii() and looks_like_base64(text) else folder / text


def read_file(path: Path, most_bytes: int = -1) -> bytes:
    """The content of a file, or its beginning.

    Raises:
        OSError: it cannot be read.
        Unreadable: it is a pipe or a device, which may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Unreadable("It is a pipe or a device, no file.")
    with path.open("rb") as file:
        return file.read(most_bytes)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def looks_like_base64(text: str) -> bool:
    """Whether a cell is base64 and not a path: it begins like an image, or is too long for a path."""
    head = "".join(text[: 2 * _HEAD_CHARS].split())[:_HEAD_CHARS]
    if not _BASE64.fullmatch(head):
        return False
    if len(text) > _LONGEST_PATH_CHARS:
        return True
    try:
        start = pybase64.b64decode(head[: len(head) // 4 * 4])
    except binascii.Error:
        return False
    return any(re.match(magic, start, re.DOTALL) for magic in FORMAT_MAGIC.values())


def _of_scheme(scheme: str, text: str, folder: Path) -> Path | Unreadable:
    if scheme in AZUREML:
        return _by_longest_suffix(text, folder)
    return Unreadable(
        f"The service fetches http:// and https:// only, not {scheme}://; jobs.batch_ray reads s3://, gs:// and abfs://."
    )


def _by_longest_suffix(url: str, folder: Path) -> Path | Unreadable:
    """The file for a datastore URL: the longest end of its path that exists below the table's folder."""
    parts = [part for part in unquote(url.split("://", 1)[1]).split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        candidate = folder.joinpath(*parts[first:])
        if candidate.is_file():
            return candidate
    return Unreadable("No end of this datastore URL's path is a file in the folder of the table: put the photos beside it.")
