"""Converts AzureML annotations (JSON lines, one photo a line) to a COCO document.

    {"image_url", "image_details": {"width", "height"}, "label": [{"label", "isCrowd", "polygon": [[x, y, …], …]}]}

Polygons are fractions of width and height; those of one object combine by XOR, so a polygon inside another is a hole. Objects that
AzureML's reader drops with a warning are left out and reported: polygons of fewer than three points, and objects without a polygon, whose
boxes count as crowds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from jobs.annotations.coco_objects import MAX_OF_OTHER_KIND
from jobs.annotations.fields import number, parse_json, pixels, read_text
from jobs.annotations.outlines import OutlineError, combine_by_xor, read_outline
from jobs.annotations.photo_files import find_photos, sized
from jobs.annotations.report import AnnotationsError, Report
from jobs.scoring.tables import MLTABLE, InputsError, tables_of_mltable

Entry = dict[str, Any]
SUFFIXES = frozenset({".jsonl", ".json"})
"""Of the JSON lines that an MLTable lists."""
SLACK = 0.5
"""Polygons may reach beyond the photo by this share of its side; pixels instead of fractions are far beyond."""


def azureml_to_coco(rows: Iterable[tuple[str, Entry]], source: str, photos: Path, report: Report) -> Entry:
    """Convert AzureML annotations to one COCO document.

    Args:
        rows: place for messages, such as "line 3", and the parsed line; `image_details` may be missing.
        source: name of the file, for messages.
        photos: folder of the photos.
        report: records what is left out.
    Returns:
        COCO document; polygons in pixels, categories numbered from 1 in alphabetical order, `file_name` relative to `photos`.
    Raises:
        AnnotationsError: a row lacks a key, more than a few polygons are in pixels, or two rows are of one photo.
    Source: CONTRACT.md, "Batch, annotations, metrics".
    """
    rows = [(place, _checked(row, f"{source}, {place}")) for place, row in rows]
    files = find_photos([_path_of(row["image_url"]) for _, row in rows], photos, report)
    labels = sorted({str(label["label"]) for _, row in rows for label in row["label"]})
    ids = {name: number for number, name in enumerate(labels, start=1)}
    images: list[Entry] = []
    annotations: list[Entry] = []
    seen: dict[str, str] = {}
    beyond: list[str] = []
    for image_id, (place, row) in enumerate(rows, start=1):
        name, details = files[_path_of(row["image_url"])], row.get("image_details") or {}
        if name in seen:
            raise AnnotationsError(
                f"{source}: {seen[name]} and {row['image_url']} are both {name} in the folder of the photos; "
                "a photo is one row, with all its objects."
            )
        seen[name] = row["image_url"]
        size = pixels(details.get("width")), pixels(details.get("height"))
        images.append(sized({"id": image_id, "file_name": name}, size, photos, f"{source}, {place}: photo {name}"))
        for label in row["label"]:
            where = f"{place}, {name}"
            outline = _outline(label, images[-1], source, where, report, beyond)
            if outline is not None:
                found = {"image_id": image_id, "category_id": ids[str(label["label"])], "segmentation": outline, "_place": where}
                found |= {"bbox": _box_xywh(label, images[-1])} if not outline else {}
                annotations.append(found | {"iscrowd": label.get("isCrowd"), "id": len(annotations) + 1})
    if beyond and len(beyond) > MAX_OF_OTHER_KIND * len(annotations):
        raise AnnotationsError(f"{source}: {beyond[0]}, as {len(beyond)} of {len(annotations) + len(beyond)} do.")
    return {"images": images, "annotations": annotations, "categories": [{"id": ids[name], "name": name} for name in labels]}


def _checked(row: Any, where: str) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("image_url"), str) or not isinstance(row.get("label"), list):
        raise AnnotationsError(f"{where}: not AzureML annotations, an object with the text image_url and the list label.")
    if not isinstance(row.get("image_details") or {}, dict):
        raise AnnotationsError(f"{where}: not AzureML annotations, image_details is not an object.")
    for label in row["label"]:
        if not isinstance(label, dict) or not isinstance(label.get("label"), (str, int)) or label["label"] == "":
            raise AnnotationsError(f"{where}: not AzureML annotations, a label is not an object with the text label.")
    return row


def _outline(label: Entry, image: Entry, source: str, where: str, report: Report, beyond: list[str]) -> Any:
    """The outline in pixels, empty if there is none; None if it is left out and reported. `beyond` gets those that are not fractions."""
    size_hw = image["height"], image["width"]
    polygon = label.get("polygon")
    try:
        fractions, short = read_outline(polygon, size_hw)
    except OutlineError as error:
        raise AnnotationsError(f"{source}: {where}: {str(error).replace('segmentation', 'polygon')}.") from error
    if isinstance(fractions, dict):
        raise AnnotationsError(f"{source}: {where}: its polygon is RLE, where AzureML has fractions.")
    if short:
        report.leave_out("polygons of fewer than three points", where)
    if not fractions:
        return None if short else []
    numbers = np.concatenate(fractions)
    if numbers.min() < -SLACK or numbers.max() > 1 + SLACK:
        spread = f"polygon from {numbers.min():g} to {numbers.max():g}"
        beyond.append(f"{where}: {spread}: expected fractions of width and height, 0 to 1")
        report.leave_out("with coordinates that are not fractions of the photo", where)
        return None
    scale = np.array([image["width"], image["height"]])
    return combine_by_xor([(np.reshape(ring, (-1, 2)) * scale).ravel().tolist() for ring in fractions], size_hw)


def _box_xywh(label: Entry, image: Entry) -> list[float] | None:
    """Box of a detection label, pixels."""
    ends = [number(label.get(name)) for name in ("topX", "topY", "bottomX", "bottomY")]
    left, top, right, bottom = (end if end is not None else -1.0 for end in ends)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        return None
    width, height = image["width"], image["height"]
    return [left * width, top * height, (right - left) * width, (bottom - top) * height]


def _path_of(image_url: str) -> str:
    """`azureml://…/paths/a/b.jpg`, `AmlDatastore://store/a/b.jpg` and `https://host/a/b.jpg` → `a/b.jpg`."""
    if "://" not in image_url:
        return image_url
    scheme, rest = unquote(image_url.split("?", 1)[0]).split("://", 1)  # a SAS token is not part of the name
    if scheme.lower() == "azureml" and "/paths/" in rest:
        return rest.split("/paths/", 1)[1]
    return rest.split("/", 1)[-1]


def jsonl_rows(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Place and content of each line that has any.

    Raises:
        AnnotationsError: a line is not JSON.
    """
    for path in files:
        for line_number, line in enumerate(read_text(path).split("\n"), start=1):
            place = f"line {line_number}" if len(files) == 1 else f"{path.name}, line {line_number}"
            if line.strip():
                yield place, parse_json(line, f"{path}, line {line_number}")


def mltable_files(table: Path) -> list[Path]:
    """The JSONL files that a folder's MLTable file lists.

    Args:
        table: the folder, or the file itself.
    Raises:
        AnnotationsError: it lists none, or some that are not here.
    """
    file = table / MLTABLE if table.is_dir() else table
    if not file.is_file():
        raise AnnotationsError(
            f"{table}: a folder without a file {MLTABLE}. Name the annotations, or the folder of an {MLTABLE}."
        )
    try:
        return tables_of_mltable(file, SUFFIXES)
    except InputsError as error:
        raise AnnotationsError(f"{error}.") from error
