"""Reads tables of images: CSV, JSON lines, and the MLTable files that list them.

table ─▶ rows ─▶ the cell `image` or `image_url` ─▶ base64, a data: URL, a URL that the service fetches, or a file on this machine
"""

from __future__ import annotations

import binascii
import codecs
import csv
import errno
import glob
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
import pybase64
import yaml

from pipeline.images.decode import FORMAT_MAGIC

TABLE_SUFFIXES = frozenset({".csv", ".jsonl"})
MAX_FAULTS = 20
"""A job stops after so many faults: requests that failed after all retries, and photos that the storage did not give."""
COLUMNS = ("image", "image_url")
"""Names of the column with images; AzureML's CSVs use the first, its JSON lines the second."""
MLTABLE = "MLTable"
MAX_CELL_CHARS = 2**28
"""Longest cell of a CSV: a photo of 200 MB in base64. Python's default limit is 131,072."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_HEAD_CHARS = 64
_LONGEST_PATH_CHARS = 4096
AZUREML = frozenset({"azureml", "amldatastore"})


class InputsError(ValueError):
    """The source cannot be used; the message gives the reason."""


class Unreadable(ValueError):
    """A cell names no image; the message gives the reason."""


def tables_of_mltable(file: Path, suffixes: Collection[str] = TABLE_SUFFIXES) -> list[Path]:
    """The files of these suffixes that an MLTable file lists under `paths`, by `file`, `pattern` or `folder`; each once.

    Raises:
        InputsError: it is not an MLTable, or one of the paths is not on this machine or has nothing to read.
    """
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8-sig"))["paths"]
        named = [(kind, str(text)) for entry in entries for kind, text in entry.items()]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputsError(f"{file}: not an MLTable with `paths` ({type(error).__name__})") from error
    tables: list[Path] = []
    for kind, text in named:
        if "://" in text:
            raise InputsError(f"{file}: {text} is not on this machine: download it, and name the file here")
        pattern = text if kind == "pattern" else f"{glob.escape(text)}/*" if kind == "folder" else glob.escape(text)
        found = sorted(file.parent / name for name in glob.glob(pattern, root_dir=file.parent, recursive=True))
        if not (of_tables := [path for path in found if path.suffix.lower() in suffixes and path.is_file()]):
            missing = f"there is no table ({', '.join(sorted(suffixes))})" if found else "there is no file"
            raise InputsError(f"{file}: of its paths, {kind} {text}: {missing}")
        tables += of_tables
    if not tables:
        raise InputsError(f"{file}: its `paths` list no tables")
    return list(dict.fromkeys(tables))


def images_in(table: Path) -> Iterator[Path | str | Unreadable]:
    """The image of each row of a CSV or of JSON lines, see `image_of_cell`.

    Raises:
        InputsError: it is no such table, or has no column of images.
    """
    with table.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputsError(f"{table}: it is UTF-16, as PowerShell and Excel write: save it as UTF-8")
    for cell in _jsonl_cells(table) if table.suffix.lower() == ".jsonl" else _csv_cells(table):
        yield cell if isinstance(cell, Unreadable) else image_of_cell(cell, table.parent)


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
        if (kind := scheme[1].lower()) in AZUREML:
            return _by_longest_suffix(text, folder)
        return Unreadable(
            f"The service fetches http:// and https:// only, not {kind}://; jobs.batch_ray reads s3://, gs:// and abfs://."
        )
    if "\\" in text and not os.path.exists(folder / text):
        text = text.replace("\\", "/")  # as Windows writes paths
    return "".join(text.split()) if text.isascii() and looks_like_base64(text) else folder / text


def read_file(path: Path, max_bytes: int = -1) -> bytes:
    """The content of a file, or its beginning.

    Raises:
        OSError: it cannot be read.
        Unreadable: it is a pipe or a device, which may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Unreadable("It is a pipe or a device, no file.")
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError as error:
        if _stands_alone(path):
            reason = "neither it nor anything beside it is there: is its storage mounted on this machine?"
            raise OSError(errno.ENODEV, reason, str(path)) from error
        raise


def _stands_alone(path: Path) -> bool:
    """Whether the nearest folder that is there is empty, as that of a share is until it is mounted, or the root."""
    nearest = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    with os.scandir(nearest) as entries:
        return nearest == nearest.parent or next(entries, None) is None


def is_of_the_photo(error: BaseException | None) -> bool:
    """Whether a file could not be read because it is not there or may not be read. Any other error is of the storage: it may pass."""
    if isinstance(error, OSError):
        kinds = FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError
        return isinstance(error, kinds) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return isinstance(error, ValueError)  # no path at all


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


def _by_longest_suffix(url: str, folder: Path) -> Path | Unreadable:
    """The file for a datastore URL: the longest end of its path that exists below the table's folder."""
    parts = [part for part in unquote(url.split("://", 1)[1]).split("/") if part not in ("", ".", "..")]
    for first in range(len(parts)):
        candidate = folder.joinpath(*parts[first:])
        if candidate.is_file():
            return candidate
    return Unreadable("No end of this datastore URL's path is a file in the folder of the table: put the photos beside it.")


def _csv_cells(table: Path) -> Iterator[str | None]:
    csv.field_size_limit(MAX_CELL_CHARS)
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)  # else the photos after a quotation mark that is not closed are one cell
        try:
            column = _image_column(list(rows.fieldnames or ()), table)
            for row in rows:
                yield row[column]
        except csv.Error as error:
            raise InputsError(
                f"{table}, line {rows.reader.line_num}: not CSV: {error}. Is a quotation mark missing before?"
            ) from error


def _image_column(columns: list[str], table: Path) -> str:
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise InputsError(f"{table}: the column `{column}` is there {columns.count(column)} times")
        if column in columns:
            return column
    hint = "; columns must be separated by commas" if len(columns) == 1 and ";" in columns[0] else ""
    named = ", ".join(column[:40] for column in columns[:10]) or "none"
    raise InputsError(f"{table}: there is no column `image`; the columns are {named}{hint}")


def _jsonl_cells(table: Path) -> Iterator[str | Unreadable | None]:
    with table.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not (line := line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
                continue
            row = _json_of(line, f"{table}, line {number}")
            if not isinstance(row, dict) or not any(column in row for column in COLUMNS):
                raise InputsError(f"{table}, line {number}: there is no `image_url` or `image`")
            cell = next(row[column] for column in COLUMNS if column in row)
            yield cell if cell is None or isinstance(cell, str) else Unreadable(f"The cell is not text: {str(cell)[:40]}.")


def _json_of(line: bytes, where: str) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(line)  # it reads the names, not UTF-8, that Python writes as lone surrogates
        except (ValueError, RecursionError):
            raise InputsError(f"{where}: not JSON: {error}") from error
