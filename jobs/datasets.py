"""Annotations in, COCO JSON out: mmdet and pycocotools read nothing else.

COCO JSON ───────────────────────────────▶ as it is ─┐
AzureML annotations JSONL ─▶ azureml_to_coco ─▶ file ─┴▶ Annotations(coco_json, images, classes, photo_count)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class AnnotationsError(ValueError):
    """Annotations that cannot be read; the message names file, line and what was expected."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """An annotated set of photos.

    Attributes:
        coco_json: annotations in COCO's format.
        images: folder that `file_name` is relative to.
        classes: label names, in the order of COCO's category ids.
        photo_count: photos in the file, with or without objects.
    """

    coco_json: Path
    images: Path
    classes: tuple[str, ...]
    photo_count: int


def read_annotations(path: Path, images: Path, scratch_dir: Path) -> Annotations:
    """Open COCO JSON or AzureML JSONL (`*.jsonl`); the latter is written as COCO JSON into scratch_dir.

    Raises:
        AnnotationsError: the file is missing or is neither of the two.
    """
    if not path.is_file():
        raise AnnotationsError(f"{path}: no such file.")
    if path.suffix == ".jsonl":
        coco = azureml_to_coco(_jsonl_rows(path), source=path.name)
        scratch_dir.mkdir(parents=True, exist_ok=True)
        path = scratch_dir / f"{path.stem}.coco.json"
        path.write_text(json.dumps(coco))
    else:
        coco = _read_coco(path)
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    return Annotations(path, images, tuple(category["name"] for category in categories), len(coco["images"]))


def azureml_to_coco(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], source: str) -> dict[str, Any]:
    """AzureML's one-image-a-line annotations as one COCO document.

    Args:
        rows: `{"image_url", "image_details": {"width", "height"}, "label": [{"label", "isCrowd", "polygon": [[x, y, …]]}]}`,
            polygons as fractions of width and height.
        source: name of the file, for messages.
    Returns:
        COCO document; polygons and boxes in pixels, categories numbered from 1 in alphabetical order, `file_name` the
        path after the datastore of an `azureml://` URL, or the last part of any other.
    Raises:
        AnnotationsError: a row lacks a key, or a polygon has fewer than 3 points.
    Source: CONTRACT.md, "Batch, annotations, metrics".
    """
    rows = list(rows)
    try:
        names = sorted({label["label"] for row in rows for label in row["label"]})
        ids = {name: number for number, name in enumerate(names, start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, row in enumerate(rows, start=1):
            size = row["image_details"]
            width, height = int(size["width"]), int(size["height"])
            images.append({"id": image_id, "file_name": _file_name(row["image_url"]), "width": width, "height": height})
            for label in row["label"]:
                number = len(annotations) + 1
                annotations.append(
                    _annotation(label, width, height)
                    | {
                        "id": number,
                        "image_id": image_id,
                        "category_id": ids[label["label"]],
                    }
                )
    except (KeyError, TypeError) as error:
        raise AnnotationsError(f"{source}: not AzureML annotations, missing or wrong: {error}.") from error
    categories = [{"id": ids[name], "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(label: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """One object in pixels: COCO polygons, the box around them, and their area by the shoelace formula."""
    rings = []
    for flat in label["polygon"]:
        if len(flat) < 6 or len(flat) % 2:
            raise AnnotationsError(f"polygon with {len(flat)} numbers: expected x, y pairs of 3 points or more.")
        rings.append([value * (height if place % 2 else width) for place, value in enumerate(flat)])
    xs = [x for ring in rings for x in ring[0::2]]
    ys = [y for ring in rings for y in ring[1::2]]
    box_xywh = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    area = sum(_ring_area(ring) for ring in rings)
    return {"segmentation": rings, "bbox": box_xywh, "area": area, "iscrowd": int(_truth(label.get("isCrowd", 0)))}


def _ring_area(ring: list[float]) -> float:
    xs, ys = ring[0::2], ring[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def _truth(value: Any) -> bool:
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)


def _file_name(image_url: str) -> str:
    """`azureml://…/paths/a/b.jpg` → `a/b.jpg`; `AmlDatastore://store/a/b.jpg` → `a/b.jpg`; else the last part."""
    if "/paths/" in image_url:
        return image_url.split("/paths/", 1)[1]
    if image_url.lower().startswith("amldatastore://"):
        return image_url.split("://", 1)[1].split("/", 1)[-1]
    return image_url.rsplit("/", 1)[-1] if "://" in image_url else image_url


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise AnnotationsError(f"{path}, line {number}: not JSON ({error}).") from error


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        coco = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise AnnotationsError(f"{path}: not JSON ({error}). AzureML annotations must be called *.jsonl.") from error
    missing = {"images", "annotations", "categories"} - set(coco if isinstance(coco, dict) else ())
    if missing:
        raise AnnotationsError(f"{path}: not COCO annotations, it has no {', '.join(sorted(missing))}.")
    return coco
