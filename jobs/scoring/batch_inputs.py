"""Inputs of a batch: a folder of photos, or tables with a column of images.

    folder of photos ───────────────────────────────▶ Photo(its path below the folder, 0, the file)
    CSV, JSON lines, a folder of them, MLTable ─▶ rows ▶ Photo(the table's name, the row, base64 | data: URL | URL | a file)

Photos are listed lazily, each time anew, so the list is never in memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybase64

from jobs.photos import OF_MACOS, photo_suffixes
from jobs.scoring.tables import MLTABLE, TABLE_SUFFIXES, InputsError, Unreadable, images_in, read_file, tables_of_mltable

RUN_SUFFIX = ".run"
"""Suffix of the run file beside an output of jobs.batch_score."""
ROWS_OF = "rows of "
"""Beginning of the names of facts about tables in that file."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of a batch.

    Args:
        file_name: the photo's path below its folder, or the name of its table.
        row: in the table, from 0; 0 for a file in a folder.
        image: the file, or the text that the service takes: base64, a data: URL, a URL; Unreadable if it is none of these.
    """

    file_name: str
    row: int
    image: Path | str | Unreadable

    @property
    def key(self) -> tuple[str, int]:
        """Unique key of the photo in the batch."""
        return self.file_name, self.row

    def changed_after(self, time_s: float) -> bool:
        """Whether its file was written after this time, seconds since 1970."""
        try:
            return isinstance(self.image, Path) and self.image.stat().st_mtime > time_s
        except OSError:
            return False

    def __str__(self) -> str:
        return self.file_name if isinstance(self.image, Path) and self.row == 0 else f"{self.file_name}, row {self.row}"

    def text(self, max_chars: int | None = None) -> str:
        """Base64 of the file, or the text as it is.

        Args:
            max_chars: of base64; of a larger file, only a little more is read. None: any number.
        Raises:
            OSError: the file cannot be read.
            Unreadable: the cell names no image, or no file; the message gives the reason.
        """
        if isinstance(self.image, Unreadable):
            raise self.image
        if isinstance(self.image, str):
            return self.image
        max_bytes = -1 if max_chars is None else max_chars // 4 * 3 + 1
        return pybase64.b64encode(read_file(self.image, max_bytes)).decode()


class Source:
    """The photos of a batch.

    Args:
        source: a folder, a CSV, JSON lines (*.jsonl), or an MLTable file or the folder that holds it.
    Attributes:
        skipped: after an iteration: number of what was left out of a folder, by suffix or kind.
    Raises:
        InputsError: it is none of these.
    """

    def __init__(self, source: str) -> None:
        self.path = Path(source)
        self.skipped: Counter[str] = Counter()
        if not source:
            raise InputsError("the source is empty: name a folder or a table")
        if "://" in source:
            raise InputsError(
                f"{source}: only what is on this machine is read here; jobs.batch_ray reads s3://, gs:// and abfs://"
            )
        if self.path.suffix.lower() in photo_suffixes() and self.path.is_file():
            raise InputsError(f"{source} is one photo: name its folder, or a CSV that lists it")
        self._read = self._reader()

    def __iter__(self) -> Iterator[Photo]:
        """All photos, each once.

        Raises:
            InputsError: a folder or table cannot be read, or is empty.
        """
        self.skipped.clear()
        found = False
        try:
            for photo in self._read():
                found = True
                yield photo
        except OSError as error:
            raise InputsError(f"{self.path}: cannot be read as a folder or a table: {error}") from error
        if not found:
            more = f"; {self.left_out()}" if self.skipped else ""
            raise InputsError(f"{self.path}: there is no photo ({', '.join(sorted(photo_suffixes()))}){more}")

    def count(self, before: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Number of photos, and of each table a fact: the number of its rows and a digest of them.

        Args:
            before: facts of an earlier run; empty if there was none. A table's digest is of as many rows as then: rows may be added, but
                one put between others makes the row numbers of an output those of other photos. New tables have no fact.
        """
        photos, rows, digests = 0, Counter[str](), dict[str, Any]()
        facts = {name: fact for name, fact in before.items() if name.startswith(ROWS_OF)}
        folder = self.path if self.path.is_dir() else self.path.parent
        for photo in self:
            photos += 1
            name = ROWS_OF + photo.file_name
            most = facts[name][0] if name in facts else 0 if before else math.inf
            if photo.row < most and Path(photo.file_name).suffix.lower() in TABLE_SUFFIXES:
                rows[name] += 1
                image = shown(photo.image, folder) if isinstance(photo.image, Path) else str(photo.image)
                digests.setdefault(name, hashlib.sha256()).update(f"{image}\n".encode(errors="backslashreplace"))
        return photos, facts | {name: [rows[name], digest.hexdigest()[:16]] for name, digest in digests.items()}

    def left_out(self) -> str:
        """What the last iteration left out of the folder, in a sentence; empty if nothing."""
        if not self.skipped:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.skipped.most_common(8))
        return (
            f"{self.skipped.total():,} files of {self.path} are left out, not photos in a format that the service reads: {kinds}"
        )

    def _reader(self) -> Callable[[], Iterator[Photo]]:
        path = self.path
        if not path.exists():
            raise InputsError(f"{path}: no such file or folder")
        if path.name == MLTABLE and path.is_file():
            return lambda: _of_tables(tables_of_mltable(path), path.parent)
        if path.is_dir() and (path / MLTABLE).is_file():
            return lambda: _of_tables(tables_of_mltable(path / MLTABLE), path)
        if path.is_dir():
            return self._of_folder
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise InputsError(f"{path}: neither a folder nor a table ({', '.join(sorted(TABLE_SUFFIXES))})")
        return lambda: _of_tables([path], path.parent)

    def _of_folder(self) -> Iterator[Photo]:
        """The photos in the folder; if there are none, the rows of its tables, as AzureML's batch endpoint reads a folder of CSVs."""
        suffixes, found = photo_suffixes(), False
        for path in _files_below(self.path, self.skipped):
            if path.name.startswith(OF_MACOS):
                self.skipped[f"of macOS ({OF_MACOS}…)"] += 1
            elif path.suffix.lower() in suffixes:
                found = True
                yield Photo(shown(path, self.path), 0, path)
            else:
                self.skipped[path.suffix.lower() or "no suffix"] += 1
        if not found and any(self.skipped[suffix] for suffix in TABLE_SUFFIXES):
            tables = sorted(path for path in _files_below(self.path, Counter()) if path.suffix.lower() in TABLE_SUFFIXES)
            for suffix in TABLE_SUFFIXES:
                del self.skipped[suffix]
            if outputs := [table for table in tables if _is_output(table)]:
                self.skipped["rows of jobs.batch_score"] = len(outputs)
            yield from _of_tables([table for table in tables if table not in outputs], self.path)


def _is_output(table: Path) -> bool:
    """Whether jobs.batch_score writes it: with this folder as the source, the same command given again would read its own rows."""
    runs = (table.with_name(f"{name}{RUN_SUFFIX}") for name in (table.name, table.stem))  # preds.parquet.jsonl, preds.parquet.run
    return any(run.exists() for run in runs)


def shown(path: Path, folder: Path) -> str:
    r"""A path below a folder as text that can be written on one line; of two paths the texts differ.

    A byte that is not UTF-8 is written as \xe9, a control character as \n, \x1b or \u2028. Where such an escape is in the text, or a
    backslash of the name would read as one, the name's own backslashes are doubled.
    """
    name = os.fsencode(path.relative_to(folder) if path.is_relative_to(folder) else path).decode("utf-8", "surrogateescape")
    if _UNWRITABLE.search(name) or _READS_AS_ESCAPE.search(name):
        return _UNWRITABLE.sub(lambda found: _escaped(found[0]), name.replace("\\", "\\\\"))
    return name


_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")
"""Control characters, what some readers take for the end of a line, and bytes that are not UTF-8 (as surrogates)."""
_READS_AS_ESCAPE = re.compile(r"\\[nrtxu\\]")


def _escaped(char: str) -> str:
    if char in "\n\r\t":
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}[char]
    if char >= "\udc80":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\x{ord(char):02x}" if char.isascii() else f"\\u{ord(char):04x}"


def _files_below(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """All files at any depth, in no order: sorting would keep all names in memory. Counts in `left_out` what is neither file nor folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(Path(entry.path), left_out)
            elif kind := _no_file(entry):
                left_out[kind] += 1
            else:
                yield Path(entry.path)


def _no_file(entry: os.DirEntry[str]) -> str:
    """What something in a folder is instead of a file; empty for a file."""
    try:
        if entry.is_file():
            return ""
        if entry.is_dir():
            return "links to folders (they are not followed)"
    except OSError:  # a link in a circle, or to where this user may not look
        return "broken links"
    return "broken links" if entry.is_symlink() else "pipes, sockets or devices"


def _of_tables(tables: list[Path], folder: Path) -> Iterator[Photo]:
    for table in tables:
        name = shown(table, folder)
        for number, image in enumerate(images_in(table)):
            yield Photo(name, number, image)
