"""The output folder of a batch on a cluster: the settings of its rows, and one run at a time that writes it.

OUTPUT/run.json    settings of the rows; a run with others is refused. On this machine's disks it is locked while a run writes
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from jobs.command_line import naming
from jobs.scoring.batch_output import lock_output
from jobs.scoring.cluster_inputs import filesystem_of
from jobs.scoring.tables import InputsError

RUN_FILE, MANIFEST = "run.json", "photos.parquet"
SETTINGS = ("through", "format", "score_threshold", "mask_format", "tiles", "overlap", "white_level")
"""Arguments that determine the rows."""


@contextmanager
def claimed(output: str, settings: dict[str, Any]) -> Iterator[None]:
    """Within: the folder is this run's. Rows of an earlier run in it were made with the same settings.

    In an object store there are no locks; there, runs in one cluster are told apart by the name of their Tally.

    Args:
        output: the folder.
        settings: of `settings_of`.
    Raises:
        InputsError: the rows in it were made with other settings, another run is writing it, or it holds files of something else.
    """
    with contextlib.nullcontext() if "://" in output else _locked(output):
        _check_settings(output, settings)
        yield


@contextmanager
def _locked(output: str) -> Iterator[None]:
    Path(output).mkdir(parents=True, exist_ok=True)
    with Path(output, RUN_FILE).open("a") as run_file:
        lock_output(run_file, output)
        yield


def settings_of(args: argparse.Namespace, output: str, made_by: dict[str, Any]) -> dict[str, Any]:
    """What determines the rows: the source, the arguments, and `made_by`, the model and how it runs.

    Raises:
        InputsError: the output is the source, or the list of the photos would replace it.
    """
    source = args.source.rstrip("/") if "://" in args.source else str(Path(args.source).resolve())
    (read, path), (written, folder) = filesystem_of(source), filesystem_of(output)
    if read.type_name == written.type_name and path.rstrip("/") in (folder, f"{folder}/{MANIFEST}"):
        raise InputsError(
            f"--output {args.output}: the source is there, and the job writes {MANIFEST} into it: name another folder"
        )
    return {"source": source, **made_by} | {name: getattr(args, name) for name in SETTINGS}


def _check_settings(output: str, settings: dict[str, Any]) -> None:
    """Compare the settings with those of the rows; where there is no row yet, record them."""
    filesystem, folder = filesystem_of(output)
    path, manifest = f"{folder}/{RUN_FILE}", f"{folder}/{MANIFEST}"
    earlier = _earlier(filesystem, path)
    if earlier == settings:
        return
    if filesystem.get_file_info(pafs.FileSelector(f"{folder}/rows", allow_not_found=True)):
        changes = (f"{name} was {earlier.get(name)!r}, is now {settings[name]!r}" for name in settings)
        changed = "; ".join(change for name, change in zip(settings, changes, strict=True) if earlier.get(name) != settings[name])
        raise InputsError(f"{output} holds rows that were made with other settings: {changed}. Take another --output")
    filesystem.create_dir(folder, recursive=True)
    if filesystem.get_file_info(manifest).type == pafs.FileType.File:
        if not earlier:
            raise InputsError(
                f"{output}/{MANIFEST} is of something else, and this job writes a file of that name: take another --output"
            )
        filesystem.delete_file(manifest)  # of another source
    try:
        with naming(path), filesystem.open_output_stream(path) as stream:
            stream.write(json.dumps(settings, indent=1).encode())
    except OSError:
        filesystem.delete_file(path)  # in part, it would be refused as another job's
        raise


@contextmanager
def whole_object(filesystem: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Within: a stream to a draft, which becomes the file at the end; after an error, the file is as before.

    Raises:
        OSError: of the file.
    """
    with naming(path):
        try:
            with filesystem.open_output_stream(f"{path}.part") as stream:
                yield stream
        except BaseException:
            with contextlib.suppress(OSError):
                filesystem.delete_file(f"{path}.part")
            raise
        filesystem.move(f"{path}.part", path)


def _earlier(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    """The settings of an earlier run; empty if there was none."""
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return {}
    text = filesystem.open_input_stream(path).read()
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError) as error:
        raise InputsError(f"{path} is not of this job: take another --output") from error
