"""Inputs of a batch on a cluster: a list of the photos as Parquet, with ids by which finished ones are skipped.

    folder here, s3://, gs://, abfs:// ─▶ paths below it ─┐
    CSV, JSON lines, MLTable (jobs.scoring.batch_inputs) ─┼─▶ photos.parquet: id, file_name, row_number_per_file, image
    Parquet, a file or a folder of them ──────────────────┘   (read where it lies; its own column `id` is the id)

`image` is a path with its scheme, a URL, base64, or the bytes. The list is written once: a run that goes on reads the list it finds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, quote_from_bytes

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.command_line import naming
from jobs.photos import OF_MACOS, photo_suffixes
from jobs.scoring.batch_inputs import Source
from jobs.scoring.tables import COLUMNS, InputsError, Unreadable

ID, IMAGE, FILE_NAME, ROW, PREDS = "id", "image", "file_name", "row_number_per_file", "preds"
SCHEMA = pa.schema([(ID, pa.string()), (FILE_NAME, pa.string()), (ROW, pa.int64()), (IMAGE, pa.string())])
ROWS_AT_ONCE = 10_000
PENDING = ".pending.parquet"
"""End of the name of a checkpoint whose rows are being written. Ray Data deletes both when the job starts again."""
UNREADABLE = "unreadable:"
"""Prefix of the reason, if a cell names no image."""
FILE = "file://"
"""Prefix of a local path that is not UTF-8, with its bytes percent-encoded."""
NOT_QUOTED = "/:@?=&"
"""What has a meaning in the address of a store: keys are written as they are, with blanks, # and %."""


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a place and the place's path in it; credentials come from the environment.

    Raises:
        InputsError: no file system is known for its scheme, or it cannot be reached.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).resolve())
    scheme, _, rest = uri.partition("://")
    try:
        with contextlib.suppress(pa.ArrowInvalid):
            found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe=NOT_QUOTED)}")
            return found
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
    except (ImportError, ValueError, OSError) as error:
        raise InputsError(f"{uri}: {error}") from error


@dataclass(frozen=True, slots=True)
class Listed:
    """The photos of a batch as Parquet files.

    Args:
        total: how many photos.
        filesystem, files: where the files are.
        column: of the images, in a Parquet source; None: the files are the list that `list_photos` wrote.
    """

    total: int
    filesystem: pafs.FileSystem
    files: tuple[str, ...]
    column: str | None = None


def listed(source: str, manifest: str) -> Listed:
    """The photos of a source: a Parquet source as it lies, the list of an earlier run, or a new list.

    Raises:
        InputsError: the source cannot be read, or there is nothing in it.
    """
    if files := parquet_files(source):
        return _parquet_source(source, files)
    try:
        if total := count_rows(manifest):
            message = f"the {total:,} photos of the first run ({manifest}); what was added since is not scored:"
            print(f"jobs.batch_ray: {message} take another --output for it", file=sys.stderr)
        else:
            total = list_photos(source, manifest)
    except InputsError as error:
        if below := _parquet_below(source):
            raise InputsError(
                f"{error}. Parquet is read directly in the folder that is named: name that of {below[0]}"
            ) from error
        raise
    filesystem, path = filesystem_of(manifest)
    return Listed(total, filesystem, (path,))


def list_photos(source: str, manifest: Path | str) -> int:
    """Write the list of a source's photos, whole or not at all, and say how many they are.

    Raises:
        InputsError: the source cannot be read, or there is nothing in it.
    """
    filesystem, path = filesystem_of(str(manifest))
    photos, batch = 0, list[dict[str, Any]]()
    rows = _of_store(source) if "://" in source else _of_here(source)
    filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
    with naming(manifest), pq.ParquetWriter(f"{path}.part", SCHEMA, filesystem=filesystem) as writer:
        for row in rows:
            batch.append(row)
            photos += 1
            if len(batch) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
    if not photos:
        raise InputsError(f"{source}: there is no photo ({', '.join(sorted(photo_suffixes()))})")
    filesystem.move(f"{path}.part", path)
    return photos


def parquet_files(uri: str) -> list[str]:
    """Paths of the Parquet file of that name, or of those directly in the folder of that name, in its file system; sorted."""
    filesystem, path = filesystem_of(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.Directory:
        return sorted(file.path for file in filesystem.get_file_info(pafs.FileSelector(path)) if _is_parquet(file))
    return [path] if _is_parquet(info) else []


def _is_parquet(file: pafs.FileInfo) -> bool:
    return bool(file.type == pafs.FileType.File and file.extension.lower() == "parquet")


def _parquet_below(uri: str) -> list[str]:
    """Paths of the Parquet files in the folders below the folder of that name; sorted."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return []
    files = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return sorted(file.path for file in files if _is_parquet(file) and str(PurePosixPath(file.path).parent) != path.rstrip("/"))


def count_rows(uri: str) -> int:
    """Rows of a Parquet file or a folder of them, read from their footers; 0 if there is none.

    Of Ray Data's checkpoints only those count that are committed: the others are of rows that were not written whole.

    Raises:
        InputsError: a file is damaged.
    """
    filesystem, _ = filesystem_of(uri)
    rows = 0
    for path in parquet_files(uri):
        if path.endswith(PENDING):
            continue
        with _naming_errors(path):
            rows += pq.read_metadata(path, filesystem=filesystem).num_rows
    return rows


def _parquet_source(source: str, files: Sequence[str]) -> Listed:
    """The photos of a Parquet source. Their column is `image` or `image_url`; of the files, only the ids are read.

    Args:
        files: its `parquet_files`, at least one.
    Raises:
        InputsError: the column of images, or the column `id`, is missing from a file; an id is missing or there twice; there are photos
            beside the files.
    """
    if odd := next((file for file in files if "?" in file), None):
        raise InputsError(f"{odd}: Ray Data takes what follows a ? for a query; rename it")
    filesystem, folder = filesystem_of(source)
    if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
        suffixes = photo_suffixes()
        for file in filesystem.get_file_info(pafs.FileSelector(folder)):
            if f".{file.extension.lower()}" in suffixes:
                raise InputsError(f"{source} holds photos ({file.base_name}) and Parquet files: name one of them")
    seen, columns = list[pa.ChunkedArray](), set[tuple[str, str]]()
    for path in files:
        with _naming_errors(path), pq.ParquetFile(path, filesystem=filesystem) as table:
            names = table.schema_arrow.names
            column = next((name for name in COLUMNS if name in names), None)
            if column is None or ID not in names:
                missing = ", ".join(name for name, is_there in ((ID, ID in names), (IMAGE, column)) if not is_there)
                raise InputsError(f"{path}: there is no column {missing}; the columns are {', '.join(names)}")
            columns.add((column, _type_of(path, table.schema_arrow, column)))
            seen.append(table.read(columns=[ID])[ID])
    if len(columns) > 1:
        found = " and ".join(f"{name} ({kind})" for name, kind in sorted(columns))
        raise InputsError(f"{source}: images are in {found}; all files must have the same column, of one type")
    _check_ids(source, seen)
    if below := _parquet_below(source):
        print(f"jobs.batch_ray: {len(below):,} Parquet files in folders below {source} are left out: {below[0]}", file=sys.stderr)
    return Listed(sum(map(len, seen)), filesystem, tuple(files), columns.pop()[0])


def _type_of(path: str, schema: pa.Schema, column: str) -> str:
    """The type of the images. Raises InputsError if it is neither bytes nor text, or a column is there twice."""
    for name in (ID, column):
        if (times := schema.names.count(name)) > 1:
            raise InputsError(f"{path}: the column {name} is there {times} times")
    kind = schema.field(column).type
    content = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(kind) and "bytes" in {field.name for field in kind}:
        raise InputsError(f"{path}: column {column} is {kind}, as Hugging Face writes it: write its `bytes` as the column")
    if str(content) not in ("binary", "large_binary", "string", "large_string", "null"):
        raise InputsError(f"{path}: column {column} is {kind}, neither bytes nor text")
    return str(kind)


def _check_ids(source: str, seen: list[pa.ChunkedArray]) -> None:
    """Check that each row has an id of its own, by which a repeated command skips rows that are done."""
    if len({ids.type for ids in seen}) > 1:
        raise InputsError(f"{source}: column {ID} has several types: {', '.join(sorted({str(ids.type) for ids in seen}))}")
    ids = pa.chunked_array([chunk for column in seen for chunk in column.chunks], seen[0].type)
    if not len(ids):
        raise InputsError(f"{source}: there is no row")
    if ids.null_count:
        raise InputsError(f"{source}: {ids.null_count:,} rows have no {ID}; each needs one of its own")
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise InputsError(f"{source}: column {ID} is {ids.type}, not text or whole numbers")
    if len(ids.unique()) < len(ids):
        twice = next(row["values"] for row in ids.value_counts().to_pylist() if row["counts"] > 1)
        raise InputsError(f"{source}: {ID} {twice!r} is there more than once; each row needs one of its own")


@contextlib.contextmanager
def _naming_errors(path: str) -> Iterator[None]:
    """Within: Arrow's error about a file becomes an InputsError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputsError(f"{path}: cannot be read as Parquet: {error}") from error


def _row(file_name: str, number: int, image: str) -> dict[str, Any]:
    return {ID: f"{file_name}#{number}", FILE_NAME: file_name, ROW: number, IMAGE: image}


def _of_here(source: str) -> Iterator[dict[str, Any]]:
    photos = Source(source)
    for photo in photos:
        yield _row(photo.file_name, photo.row, _text(photo.image))
    if photos.skipped:
        print(f"jobs.batch_ray: {photos.left_out()}", file=sys.stderr)


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
    base, suffixes = source.partition("?")[0].rstrip("/"), photo_suffixes()
    try:
        files = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InputsError(f"{source}: {error}") from error
    for file in files:
        is_photo = file.type == pafs.FileType.File and f".{file.extension.lower()}" in suffixes
        if is_photo and not file.base_name.startswith(OF_MACOS):
            name = str(PurePosixPath(file.path).relative_to(root))
            yield _row(name, 0, f"{base}/{name}")
