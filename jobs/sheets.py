"""The sheets that `jobs.pictures` draws: photos with the objects of rows, annotations or predictions."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jobs.annotations.datasets import Annotations
from jobs.annotations.outlines import outline_to_rings, outline_to_rle
from jobs.evaluation.metrics_azureml import FALSE_POSITIVE, Objects, grouped, match
from jobs.evaluation.predictions import check_sizes
from jobs.photos import read_photo_within
from jobs.scoring.batch_inputs import Source
from jobs.scoring.rows import read_rows
from jobs.scoring.tables import InputsError
from pipeline.masks.draw import draw_overlay, text_font
from pipeline.masks.encode import objects_from_dict
from pipeline.types import SegmentedObject


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing of a photo.

    Args:
        objects: what to draw, best first.
        tags: text for each object; None: label and score.
        title: text above it; empty for none.
    """

    objects: Sequence[SegmentedObject]
    tags: Sequence[str] | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One picture to write.

    Args:
        name: of the photo, as its source calls it.
        photo: the file.
        panels: side by side.
    """

    name: str
    photo: Path
    panels: tuple[Panel, ...]

    def draw(self, longest_side_px: int, white_level: int | None = None) -> Image.Image:
        """All panels of the photo, turned upright.

        Args:
            longest_side_px: of a panel; larger photos are scaled down.
        Raises:
            PhotoError: it cannot be read.
        """
        photo = read_photo_within(self.photo, longest_side_px, white_level)
        drawn = [_with_title(draw_overlay(photo, panel.objects, panel.tags), panel.title) for panel in self.panels]
        picture = Image.new("RGB", (sum(one.width for one in drawn), drawn[0].height))
        for index, one in enumerate(drawn):
            picture.paste(one, (index * drawn[0].width, 0))
        return picture


def sheets_of_predictions(source: str, preds: Path, limit: int | None = None) -> tuple[list[Sheet], int]:
    """Sheets for the rows of `jobs.batch_score`, in their order; `source` is the first argument it was called with.

    Args:
        limit: read no further than so many sheets; None reads all.
    Returns:
        A sheet for each scored photo that is a file here; and the number of other rows (errors, URLs, base64, unknown photos).
    Raises:
        InputsError: `source` or a row of `preds` cannot be understood.
    """
    photos = {photo.key: (str(photo), photo.image) for photo in Source(source) if isinstance(photo.image, Path)}
    sheets: list[Sheet] = []
    left_out = 0
    for number, row in enumerate(read_rows(preds), start=1):
        name, photo = photos.get((row.file_name, row.row_number_per_file), ("", None))
        if photo is None or "error" in row.preds:
            left_out += 1
            continue
        try:
            sheets.append(Sheet(name, photo, (Panel(objects_from_dict(row.preds)),)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputsError(f"{preds}, row {number}: not a row of jobs.batch_score ({error!r})") from error
        if len(sheets) == limit:
            break
    return sheets, left_out


def sheets_of_annotations(annotations: Annotations, limit: int | None = None, *, even_odd: bool = False) -> list[Sheet]:
    """Sheets for the annotations, in the order of the file.

    Args:
        limit: photos; None takes all.
        even_odd: the annotations were read for training, so that a ring within another is a hole.
    """
    document = annotations.document()
    names = _label_names(document)
    real = grouped(document["annotations"], "image_id")
    sheets = []
    for image in document["images"][:limit]:
        entries = real[(image["id"],)]
        panel = Panel([_to_object(entry, names, image, even_odd=even_odd) for entry in entries], _annotated_tags(entries, names))
        sheets.append(Sheet(image["file_name"], annotations.images / image["file_name"], (panel,)))
    return sheets


def sheets_of_comparison(
    annotations: Annotations, results: Objects, score_threshold: float, limit: int | None = None
) -> list[Sheet]:
    """Sheets with annotations beside predictions, lowest F1 first.

    Args:
        results: COCO results with `segmentation`.
        score_threshold: predictions below it are left out.
        limit: number of sheets; None returns all.
    Raises:
        AnnotationsError: a photo was annotated in another size than it was scored in.
    """
    document = annotations.document()
    check_sizes(document, results)
    names = _label_names(document)
    real = grouped(document["annotations"], "image_id", "category_id")
    found = grouped([result for result in results if result["score"] >= score_threshold], "image_id", "category_id")

    def ranked() -> Iterator[tuple[float, Sheet]]:
        for image in document["images"]:
            keys = [(image["id"], category["id"]) for category in document["categories"]]
            f1, panels = _compare(image, [(real[key], found[key]) for key in keys], names)
            yield f1, Sheet(image["file_name"], annotations.images / image["file_name"], panels)

    photos = len(document["images"])
    return [sheet for _, sheet in heapq.nsmallest(min(limit or photos, photos), ranked(), key=lambda pair: pair[0])]


def _compare(
    image: dict[str, Any], labels: Sequence[tuple[Objects, Objects]], names: dict[int, str]
) -> tuple[float, tuple[Panel, Panel]]:
    """F1 of one photo, and its two panels; F1 is 1 if there are no annotations and no predictions."""
    size_hw = image["height"], image["width"]
    annotated: list[tuple[SegmentedObject, str]] = []
    predicted: list[tuple[SegmentedObject, str]] = []
    hits = missed = false = 0
    for real, found in labels:
        matched = match(real, found, "mask", size_hw).tolist()
        for tag, entry, index in zip(_annotated_tags(real, names), real, range(len(real)), strict=True):
            is_missed = index not in matched and not entry.get("iscrowd")
            missed += is_missed
            annotated.append((_to_object(entry, names, image), f"{tag}: missed" if is_missed else tag))
        for entry, index in zip(found, matched, strict=True):
            item, is_false = _to_object(entry, names, image), index == FALSE_POSITIVE
            false, hits = false + is_false, hits + (index >= 0)
            predicted.append((item, f"{item.label} {item.score:.0%}{': false' if is_false else ''}"))
    predicted.sort(key=lambda pair: -pair[0].score)
    f1 = 2 * hits / (2 * hits + missed + false) if hits + missed + false else 1.0
    left = Panel([item for item, _ in annotated], [tag for _, tag in annotated], f"annotated: {len(annotated)}")
    right = Panel([item for item, _ in predicted], [tag for _, tag in predicted])
    title = f"found: {len(predicted)}, of them {false} false; {missed} missed; F1 {f1:.2f}"
    return f1, (left, replace(right, title=title))


def _label_names(document: dict[str, Any]) -> dict[int, str]:
    return {category["id"]: category["name"] for category in document["categories"]}


def _annotated_tags(real: Objects, names: dict[int, str]) -> list[str]:
    return [names[entry["category_id"]] + (" (crowd)" if entry.get("iscrowd") else "") for entry in real]


def _to_object(entry: dict[str, Any], names: dict[int, str], image: dict[str, Any], *, even_odd: bool = False) -> SegmentedObject:
    """Convert a COCO annotation or result (pixels) to an object (fractions); annotations get the score 1."""
    size_wh = np.array([image["width"], image["height"]])
    left, top, width, height = entry["bbox"]
    x1, y1, x2, y2 = (np.array([left, top, left + width, top + height]) / [*size_wh, *size_wh]).tolist()
    outline, polygon, rle = entry["segmentation"], [], None
    if isinstance(outline, list):
        rings = outline if even_odd else outline_to_rings(outline, (image["height"], image["width"]))
        polygon = [(np.reshape(ring, (-1, 2)) / size_wh).ravel().tolist() for ring in rings]
    else:
        rle = outline_to_rle(outline, (image["height"], image["width"]))
    return SegmentedObject((x1, y1, x2, y2), names[entry["category_id"]], entry.get("score", 1.0), polygon, rle=rle)


def _with_title(picture: Image.Image, title: str) -> Image.Image:
    if not title:
        return picture
    size_px = max(round(min(picture.size) / 32), 12)
    font, bar = text_font([title], size_px), round(1.8 * size_px)
    whole = Image.new("RGB", (picture.width, picture.height + bar), (24, 24, 24))
    whole.paste(picture, (0, bar))
    ImageDraw.Draw(whole).text((bar // 2, bar // 2), title, font=font, fill=(240, 240, 240), anchor="lm")
    return whole
