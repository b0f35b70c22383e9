"""The output folder of a batch on a cluster: settings of its rows, one run at a time, COCO results.

OUTPUT/run.json            settings of the rows; a run with others is refused. On this machine's disks it is locked while a run writes
OUTPUT/coco_results.json   the rows (with run lengths) with the ids of an annotation file: for pycocotools, jobs.evaluate --results
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.annotations.fields import parse_json, read_text
from jobs.annotations.report import AnnotationsError
from jobs.command_line import naming
from jobs.evaluation.coco_results import results_of_image
from jobs.scoring.batch_output import lock_output
from jobs.scoring.cluster_inputs import FILE_NAME, PREDS, filesystem_of
from jobs.scoring.tables import InputsError

RUN_FILE, MANIFEST, COCO_RESULTS = "run.json", "photos.parquet", "coco_results.json"
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
    with contextlib.ExitStack() as stack:
        if "://" not in output:
            Path(output).mkdir(parents=True, exist_ok=True)
            lock_output(stack.enter_context(Path(output, RUN_FILE).open("a")), output)
        _check_settings(output, settings)
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


def _earlier(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    """The settings of an earlier run; empty if there was none."""
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return {}
    text = filesystem.open_input_stream(path).read()
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError) as error:
        raise InputsError(f"{path} is not of this job: take another --output") from error


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


class CocoWriter:
    """Writes COCO results with the ids of an annotation file.

    Args:
        annotations: a COCO file with `images` and `categories`; photos go by `file_name`.
    Raises:
        InputsError: it is no such file, or names two photos alike.
    """

    def __init__(self, annotations: Path) -> None:
        try:
            truth = parse_json(read_text(annotations), str(annotations))
            self._images = {image["file_name"]: image["id"] for image in truth["images"]}
            self._categories = {category["name"]: category["id"] for category in truth["categories"]}
        except (OSError, AnnotationsError, KeyError, TypeError) as error:
            raise InputsError(f"--coco: {annotations} is not a COCO file with images and categories ({error!r})") from error
        for what, named, known in (("images", "file_name", self._images), ("categories", "name", self._categories)):
            if len(known) < len(truth[what]):
                twice, _ = Counter(entry[named] for entry in truth[what]).most_common(1)[0]
                raise InputsError(f"--coco: {annotations} has several {what} with the {named} {twice}, so results have no one id")

    def write(self, output: str, row_format: str) -> str:
        """Write the results of all rows below `output`, a photo at a time; returns what to say of it.

        Raises:
            InputsError: not one row is of a photo of the annotations.
        """
        filesystem, folder = filesystem_of(output)
        left_out, written, known = Counter[str](), 0, 0
        with whole_object(filesystem, f"{folder}/{COCO_RESULTS}") as stream:
            stream.write(b"[")
            for name, preds in _rows(filesystem, f"{folder}/rows", row_format):
                if name not in self._images:
                    left_out[f"the photo {name}"] += 1
                    continue
                known += 1
                unknown = {found["label"] for found in preds["boxes"]} - set(self._categories)
                left_out.update(f"the label {label}" for label in unknown)
                for result in results_of_image(self._images[name], preds["boxes"], self._categories):
                    stream.write((",\n" if written else "").encode() + json.dumps(result).encode())
                    written += 1
            stream.write(b"]\n")
            if left_out and not known:
                name, ours = next(iter(left_out)), next(iter(self._images), "none")
                raise InputsError(
                    f"--coco: {name} and all others are not in the annotations, whose first photo is {ours}: the names must be the rows' "
                    "file_name, the paths below the folder that was scored. The rows are done; the same command writes the results"
                )
        more = f" and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
        missing = f"; not in the annotations, so left out: {next(iter(left_out))}{more}" if left_out else ""
        return f"{output}/{COCO_RESULTS}: {written:,} results{missing}"


def _rows(filesystem: pafs.FileSystem, folder: str, row_format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and preds of every row, a file at a time."""
    for file in filesystem.get_file_info(pafs.FileSelector(folder)):
        with filesystem.open_input_file(file.path) as stream:
            if row_format == "parquet":
                rows = pq.read_table(stream, columns=[FILE_NAME, PREDS]).to_pylist()
            else:
                rows = [json.loads(line) for line in stream.read().splitlines()]
        yield from ((row[FILE_NAME], json.loads(row[PREDS])) for row in rows)
