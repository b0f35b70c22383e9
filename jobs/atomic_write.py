"""Writes files atomically, whole or not at all: a full disk, a kill or an error leaves the file that was there.

atomic_file         a draft beside the file ─▶ renamed
append_atomically   at the end of an open file; what was written in part is cut off again
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from jobs.command_line import naming


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Within: write to the path given, a draft with the same suffix, which becomes `path` at the end.

    A target that is not a file, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: of `path`, for the draft too.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # if it is a link, the file behind it is replaced
    draft = path.with_name(f".{secrets.token_hex(4)}.part{path.suffix}")  # not by process: containers all have number 1
    try:
        with naming(path, instead_of=draft):
            yield draft
            if path.exists():
                shutil.copymode(path, draft)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by `atomic_file`; text as UTF-8, a character that has no UTF-8 (of a file's name) as an escape."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with atomic_file(path) as draft:
        draft.write_bytes(data)


def append_atomically(file: FileIO, data: bytes) -> None:
    """Append to an open file.

    Raises:
        OSError: not all of it can be written; the file is as before.
    """
    size, left = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        with naming(file.name):
            while left:
                left = left[file.write(left) :]
    except OSError:
        file.truncate(size)
        raise
