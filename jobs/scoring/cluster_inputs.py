"""Inputs of a batch on a cluster: writes a list of the photos as Parquet, with ids by which Ray Data skips finished photos.

    folder here, s3://, gs://, abfs:// ─▶ paths below it ─┐
    CSV, JSON lines, MLTable (jobs.scoring.batch_inputs) ─┼─▶ photos.parquet: id, file_name, row_number_per_file, image
    Parquet, a file or a folder of them ──────────────────┘   (read where it lies; its own column `id` is the id)

`image` is a path with its scheme, a URL, base64, or the bytes. The list is written once: a run that goes on reads the list it finds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.scoring.batch_inputs import COLUMNS, InputsError, Source, photo_suffixes
from jobs.scoring.cells import Unreadable

ID, IMAGE, FILE_NAME, ROW = "id", "image", "file_name", "row_number_per_file"
SCHEMA = pa.schema([(ID, pa.string()), (FILE_NAME, pa.string()), (ROW, pa.int64()), (IMAGE, pa.string())])
ROWS_AT_ONCE = 10_000
UNREADABLE = "unreadable:"
"""Prefix of the reason, if a cell names no image."""


FILE = "file://"
"""Prefix of a local path that is not UTF-8, with its bytes percent-encoded."""


def filesystem_of(place: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a place and the place's path in it; credentials come from the environment.

    Raises:
        InputsError: no file system is known for its scheme, or it cannot be reached.
    """
    if "://" not in place:
        return pafs.LocalFileSystem(), str(Path(place).resolve())
    try:
        with contextlib.suppress(pa.ArrowInvalid):
            found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(place)
            return found
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(place)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    except (ImportError, ValueError, OSError) as error:
        raise InputsError(f"{place}: {error}") from error


def list_photos(source: str, manifest: Path | str) -> int:
    """Write the list of a source's photos, and say how many they are.

    Raises:
        InputsError: the source cannot be read, or there is nothing in it.
    """
    filesystem, path = filesystem_of(str(manifest))
    photos, batch = 0, list[dict[str, Any]]()
    rows = _of_store(source) if "://" in source else _of_here(source)
    filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
    with pq.ParquetWriter(path, SCHEMA, filesystem=filesystem) as writer:
        for row in rows:
            batch.append(row)
            photos += 1
            if len(batch) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
    if not photos:
        raise InputsError(f"{source}: there is no photo ({', '.join(sorted(photo_suffixes()))})")
    return photos


def parquet_files(place: str) -> list[str]:
    """Paths of the Parquet file of that name, or of those directly in the folder of that name, in its file system; sorted."""
    filesystem, path = filesystem_of(place)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.Directory:
        inside = filesystem.get_file_info(pafs.FileSelector(path))
        return sorted(file.path for file in inside if file.type == pafs.FileType.File and file.extension == "parquet")
    return [path] if info.type == pafs.FileType.File and info.extension == "parquet" else []


def count_rows(place: str) -> int:
    """Rows of a Parquet file or a folder of them, read from their footers; 0 where there is none."""
    filesystem, _ = filesystem_of(place)
    return sum(pq.read_metadata(path, filesystem=filesystem).num_rows for path in parquet_files(place))


def image_column(source: str) -> str:
    """The column of a Parquet source that holds the images, `image` or `image_url`.

    Raises:
        InputsError: it, or the column `id`, is missing.
    """
    filesystem, _ = filesystem_of(source)
    names = pq.read_schema(parquet_files(source)[0], filesystem=filesystem).names
    column = next((name for name in COLUMNS if name in names), None)
    if column is None or ID not in names:
        missing = ", ".join(name for name, is_there in ((ID, ID in names), (IMAGE, column)) if not is_there)
        raise InputsError(f"{source}: there is no column {missing}; the columns are {', '.join(names)}")
    return column


def _row(file_name: str, number: int, image: str) -> dict[str, Any]:
    return {ID: f"{file_name}#{number}", FILE_NAME: file_name, ROW: number, IMAGE: image}


def _of_here(source: str) -> Iterator[dict[str, Any]]:
    for photo in Source(source):
        yield _row(photo.file_name, photo.row, _text(photo.image))


def _text(image: Path | str | Unreadable) -> str:
    if isinstance(image, Unreadable):
        return UNREADABLE + str(image)
    if isinstance(image, str):
        return image
    path = os.fsencode(image.resolve())
    try:
        return path.decode()
    except UnicodeDecodeError:
        return FILE + quote_from_bytes(path)


def _of_store(source: str) -> Iterator[dict[str, Any]]:
    """Photos below a folder of an object store."""
    filesystem, root = filesystem_of(source)
    scheme, suffixes = source.split("://", 1)[0], photo_suffixes()
    try:
        files = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InputsError(f"{source}: {error}") from error
    for file in files:
        if file.type == pafs.FileType.File and f".{file.extension.lower()}" in suffixes:
            yield _row(str(PurePosixPath(file.path).relative_to(root)), 0, f"{scheme}://{file.path}")
