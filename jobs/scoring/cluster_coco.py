"""The rows of a batch as COCO results, for pycocotools, jobs.evaluate --results and other programs.

OUTPUT/rows/* (preds with run lengths) + the ids of an annotation file ─▶ OUTPUT/coco_results.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.annotations.fields import parse_json, read_text
from jobs.annotations.report import AnnotationsError
from jobs.evaluation.coco_results import results_of_image
from jobs.scoring.cluster_inputs import FILE_NAME, filesystem_of
from jobs.scoring.cluster_output import whole_object
from jobs.scoring.cluster_stages import PREDS
from jobs.scoring.tables import InputsError

NAME = "coco_results.json"


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
        with whole_object(filesystem, f"{folder}/{NAME}") as stream:
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
        return f"{output}/{NAME}: {written:,} results{missing}"


def _rows(filesystem: pafs.FileSystem, folder: str, row_format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and preds of every row, a file at a time."""
    for file in filesystem.get_file_info(pafs.FileSelector(folder)):
        with filesystem.open_input_file(file.path) as stream:
            if row_format == "parquet":
                rows = pq.read_table(stream, columns=[FILE_NAME, PREDS]).to_pylist()
            else:
                rows = [json.loads(line) for line in stream.read().splitlines()]
        yield from ((row[FILE_NAME], json.loads(row[PREDS])) for row in rows)
