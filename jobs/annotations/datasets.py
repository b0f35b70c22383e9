"""Annotations in, COCO JSON out: mmdet and pycocotools read nothing else.

COCO JSON ──────────────────────────────────┐
AzureML annotations JSONL ─▶ azureml_to_coco ─┴▶ normalise ─▶ file ─▶ Annotations(coco_json, images, classes, photo_count)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jobs.annotations.coco_file import AnnotationsError, missing_photos, normalise, with_size, wrong_size

__all__ = ["Annotations", "AnnotationsError", "azureml_to_coco", "read_annotations"]


SLACK = 0.5
"""Polygons of AzureML's JSONL may reach beyond the photo by this share of its side; pixels instead of fractions are far beyond."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """An annotated set of photos.

    Attributes:
        coco_json: annotations in COCO's format, see jobs.annotations.coco_file.
        images: folder that `file_name` is relative to.
        classes: label names, in the order of COCO's category ids.
        photo_count: photos in the file, with or without objects.
        summary: photos, objects, and what was left out and why.
    """

    coco_json: Path
    images: Path
    classes: tuple[str, ...]
    photo_count: int
    summary: str


def read_annotations(
    path: Path, images: Path, scratch_dir: Path, *, training: bool = False, classes: Sequence[str] | None = None
) -> Annotations:
    """Open COCO JSON or AzureML JSONL (`*.jsonl`), and write it into scratch_dir in the form that everybody reads alike.

    Args:
        path, images: annotations, and the folder that their `file_name` is relative to.
        scratch_dir: of this set alone: another file of the same name would be overwritten.
        training: for mmdet's training and its validation; every photo must be there, in the size of its annotations.
        classes: of the training set, for the validation set that goes with it.
    Raises:
        AnnotationsError: the file is missing, is neither of the two, or has nothing to train on.
    """
    if not path.is_file():
        raise AnnotationsError(f"{path}: no such file.")
    coco = azureml_to_coco(_jsonl_rows(path), path.name, images) if path.suffix == ".jsonl" else _read_coco(path)
    coco, left_out = normalise(coco, path, images, classes, training=training)
    summary = f"{path.name}: {len(coco['images']):,} photos, {len(coco['annotations']):,} objects"
    summary += "".join(f", {count:,} left out {why}" for why, count in left_out.items())
    objects = Counter(found["category_id"] for found in coco["annotations"] if not found["iscrowd"])
    if training:
        shown = {found["image_id"] for found in coco["annotations"]}
        empty = sum(photo["id"] not in shown for photo in coco["images"])
        summary += f"; {empty:,} photos without objects" if empty else ""
        unused = [category["name"] for category in coco["categories"] if not objects[category["id"]]]
        summary += f"; no object of {', '.join(unused)}" if unused and objects else ""
    if training and not objects:
        raise AnnotationsError(f"{summary}: there is nothing to learn or to measure.")
    if training and (missing := missing_photos(coco, images)):
        raise AnnotationsError(f"{path}: {missing}.")
    if training and (wrong := wrong_size(coco, images)):
        raise AnnotationsError(f"{path}: {wrong}.")
    scratch_dir.mkdir(parents=True, exist_ok=True)
    written = scratch_dir / f"{path.stem}.coco.json"
    written.write_text(json.dumps(coco))
    return Annotations(written, images, tuple(category["name"] for category in coco["categories"]), len(coco["images"]), summary)


def azureml_to_coco(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], source: str, photos: Path) -> dict[str, Any]:
    """AzureML's one-image-a-line annotations as one COCO document.

    Args:
        rows: `{"image_url", "image_details": {"width", "height"}, "label": [{"label", "isCrowd", "polygon": [[x, y, …]]}]}`,
            polygons as fractions of width and height; `image_details` may be missing.
        source: name of the file, for messages.
        photos: folder that they are in, for the size of those that do not tell it.
    Returns:
        COCO document; polygons and boxes in pixels, categories numbered from 1 in alphabetical order, `file_name` the
        path after the datastore of an `azureml://` URL, or the last part of any other.
    Raises:
        AnnotationsError: a row lacks a key, a polygon has fewer than 3 points or is in pixels, or two rows are of one photo.
    Source: CONTRACT.md, "Batch, annotations, metrics".
    """
    rows = list(rows)
    try:
        names = sorted({label["label"] for row in rows for label in row["label"]})
        ids = {name: number for number, name in enumerate(names, start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, row in enumerate(rows, start=1):
            name, size = _file_name(row["image_url"]), row.get("image_details") or {}
            sides = {side: _pixels(size[side]) for side in ("width", "height") if size.get(side)}
            image = with_size({"id": image_id, "file_name": name} | sides, source, photos)
            width, height = image["width"], image["height"]
            images.append(image)
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, AnnotationsError):
            raise
        raise AnnotationsError(f"{source}: not AzureML annotations, missing or wrong: {error}.") from error
    urls: dict[str, str] = {}
    for row, image in zip(rows, images, strict=True):
        name, url = image["file_name"], row["image_url"]
        if name in urls:
            raise AnnotationsError(f"{source}: {urls[name]} and {url} are both {name} in the folder of the photos.")
        urls[name] = url
    categories = [{"id": ids[name], "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(label: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """One object in pixels: COCO polygons, the box around them, and their area by the shoelace formula."""
    rings = []
    for flat in label["polygon"]:
        if len(flat) < 6 or len(flat) % 2:
            raise AnnotationsError(f"polygon with {len(flat)} numbers: expected x, y pairs of 3 points or more.")
        if not all(-SLACK <= value <= 1 + SLACK for value in flat):
            raise AnnotationsError(
                f"polygon from {min(flat):g} to {max(flat):g}: expected fractions of width and height, 0 to 1."
            )
        rings.append([value * (height if place % 2 else width) for place, value in enumerate(flat)])
    if not rings:  # jobs.annotations.coco_file counts it as left out
        return {"segmentation": [], "iscrowd": 0}
    xs = [x for ring in rings for x in ring[0::2]]
    ys = [y for ring in rings for y in ring[1::2]]
    box_xywh = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    area = sum(_ring_area(ring) for ring in rings)
    return {"segmentation": rings, "bbox": box_xywh, "area": area, "iscrowd": int(_truth(label.get("isCrowd", 0)))}


def _pixels(value: Any) -> int:
    """AzureML's schema page has `"400px"`, its exports have 400."""
    return int(value.strip().removesuffix("px") if isinstance(value, str) else value)


def _ring_area(ring: list[float]) -> float:
    xs, ys = ring[0::2], ring[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def _truth(value: Any) -> bool:
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)


def _file_name(image_url: str) -> str:
    """`azureml://…/paths/a/b.jpg` → `a/b.jpg`; `AmlDatastore://store/a/b.jpg` → `a/b.jpg`; else the last part."""
    if "://" in image_url:
        image_url = unquote(image_url.split("?", 1)[0])  # a SAS token is no part of the name
    if "/paths/" in image_url:
        return image_url.split("/paths/", 1)[1]
    if image_url.lower().startswith("amldatastore://"):
        return image_url.split("://", 1)[1].split("/", 1)[-1]
    return image_url.rsplit("/", 1)[-1] if "://" in image_url else image_url


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise AnnotationsError(f"{path}, line {number}: not JSON ({error}).") from error


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        coco = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise AnnotationsError(f"{path}: not JSON ({error}). AzureML annotations must be called *.jsonl.") from error
    missing = {"images", "annotations", "categories"} - set(coco if isinstance(coco, dict) else ())
    if missing:
        raise AnnotationsError(f"{path}: not COCO annotations, it has no {', '.join(sorted(missing))}.")
    return coco


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationsError(f"{path}: not UTF-8 ({error}).") from error
