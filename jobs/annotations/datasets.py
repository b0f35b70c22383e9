"""Reads annotations of any supported format and writes COCO JSON, the format that mmdet and pycocotools read.

COCO JSON ───────────────────────────────────────────────┐
AzureML JSONL, MLTable ─▶ azureml_file.azureml_to_coco ──┴▶ coco_file.normalise ─▶ file ─▶ Annotations
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.annotations.azureml_file import azureml_to_coco, jsonl_rows, mltable_files
from jobs.annotations.coco_file import normalise
from jobs.annotations.coco_objects import BOX_ALONE
from jobs.annotations.fields import parse_json, read_text
from jobs.annotations.report import AnnotationsError, Report
from jobs.atomic_write import write_atomically
from jobs.scoring.tables import MLTABLE

__all__ = ["Annotations", "AnnotationsError", "read_annotations"]


@dataclass(frozen=True, slots=True)
class Annotations:
    """An annotated set of photos.

    Attributes:
        coco_json: annotations in COCO's format, see jobs.annotations.coco_file.
        images: folder that `file_name` is relative to.
        classes: label names, in the order of COCO's category ids.
        photo_count: photos in the file, with or without objects.
        report: counts, and what was left out or repaired.
    """

    coco_json: Path
    images: Path
    classes: tuple[str, ...]
    photo_count: int
    report: Report

    @property
    def summary(self) -> str:
        """The report as text."""
        return str(self.report)

    def document(self) -> dict[str, Any]:
        """The annotations: COCO's `images`, `annotations` and `categories`."""
        return dict(json.loads(self.coco_json.read_text()))


def read_annotations(
    path: Path,
    images: Path,
    scratch_dir: Path,
    *,
    training: bool = False,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Annotations:
    """Open COCO JSON or AzureML JSONL (`*.jsonl`, or the folder of an MLTable), and write it to scratch_dir as COCO JSON.

    Args:
        path, images: annotations, and the folder that their `file_name` is relative to.
        scratch_dir: folder for this set only: a file of the same name would be overwritten.
        training: for training and its validation; every photo must exist.
        classes: of the training set, for its validation set.
        strict: refuse annotations of which anything would be left out.
    Raises:
        AnnotationsError: the file is missing, has neither format, or has no objects.
    """
    report = Report(path.name)
    coco = normalise(_read(path, images, report), path, images, classes, report, training=training)
    if strict:
        report.refuse_left_out()
    if training and not report.objects:
        remedy = " Export outlines, polygons or masks, not boxes alone." if BOX_ALONE in report.left_out else ""
        raise AnnotationsError(f"{report.in_one_line()}: there are no objects to train or measure on.{remedy}")
    scratch_dir.mkdir(parents=True, exist_ok=True)
    written = scratch_dir / f"{path.stem}.coco.json"
    write_atomically(written, json.dumps(coco))
    return Annotations(written, images, tuple(entry["name"] for entry in coco["categories"]), report.photos, report)


def _read(path: Path, images: Path, report: Report) -> dict[str, Any]:
    if path.is_dir() or path.name == MLTABLE:
        return azureml_to_coco(jsonl_rows(mltable_files(path)), path.name, images, report)
    if not path.is_file():
        raise AnnotationsError(f"{path}: no such file.")
    if path.suffix.lower() == ".jsonl":
        return azureml_to_coco(jsonl_rows([path]), path.name, images, report)
    coco = parse_json(read_text(path), str(path), " AzureML annotations must be called *.jsonl.")
    missing = {"images", "annotations", "categories"} - set(coco if isinstance(coco, dict) else ())
    if missing:
        raise AnnotationsError(
            f"{path}: not COCO annotations, it has no {', '.join(sorted(missing))}. In the annotation tool, export them as COCO JSON."
        )
    return dict(coco)
