"""Splits the training photos into training and validation, and finds photos that are in both."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import AnnotationsError
from jobs.atomic_write import write_atomically

SPLIT_SEED = 0


def split(coco: dict[str, Any], share: float, group: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split annotations into training and validation, the same photos each time: runs of different seeds are measured on the same ones.

    Args:
        coco: COCO annotations.
        share: of the photos for validation, 0..1; approximate, because groups are not split.
        group: regular expression; what its first group (or all of it) matches in a file name says which photos belong together. None:
            each photo is its own group, and so is one that does not match.
    Raises:
        AnnotationsError: the pattern is no regular expression or matches no file name, or one of the two parts would be empty.
    """
    files = [photo["file_name"] for photo in coco["images"]]
    matched = [_group_in(file, group) if group else None for file in files]
    if group and files and not any(matched):
        raise AnnotationsError(f"--val-group {group}: no photo's file name matches (first: {files[0]}).")
    groups: dict[str, list[Any]] = defaultdict(list)
    for photo, name in zip(coco["images"], matched, strict=True):
        groups[name or photo["file_name"]].append(photo["id"])
    names = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(names)
    wanted, chosen = share * len(coco["images"]), set[Any]()
    for name in names:
        if len(chosen) + len(groups[name]) / 2 <= wanted or not chosen:
            chosen |= set(groups[name])
    if len(chosen) == len(coco["images"]):
        why = (
            f"--val-group {group}: all {len(chosen)} photos are one group"
            if group
            else f"--val-share: there is {len(chosen)} photo"
        )
        raise AnnotationsError(f"{why}, so none is left to train on.")
    return _part(coco, lambda photo: photo not in chosen), _part(coco, lambda photo: photo in chosen)


def _group_in(file_name: str, group: str) -> str | None:
    """What the pattern's first group matches; None if it does not match."""
    try:
        found = re.search(group, file_name)
    except re.error as error:
        raise AnnotationsError(f"--val-group {group}: not a regular expression ({error}).") from error
    return (found[1] if found.re.groups else found[0]) if found else None


def _part(coco: dict[str, Any], wanted: Any) -> dict[str, Any]:
    images = [photo for photo in coco["images"] if wanted(photo["id"])]
    annotations = [found for found in coco["annotations"] if wanted(found["image_id"])]
    return coco | {"images": images, "annotations": annotations}


def write_split(source: Path, folder: Path, share: float, group: str | None) -> tuple[Path, Path]:
    """Split a COCO file and write train.json and val.json into a folder."""
    parts = split(json.loads(source.read_text(encoding="utf-8")), share, group)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.json", folder / "val.json"
    for path, part in zip(paths, parts, strict=True):
        write_atomically(path, json.dumps(part))
    return paths


def photo_files(annotations: Annotations) -> list[Path]:
    """The photo files of a set, in its order."""
    return [annotations.images / photo["file_name"] for photo in json.loads(annotations.coco_json.read_text())["images"]]


def shared_photos(train: Iterable[Path], val: Iterable[Path]) -> list[Path]:
    """Validation photos that are also training photos: the same bytes, regardless of their names."""
    train_sizes, val_sizes = ({path: path.stat().st_size for path in paths} for paths in (train, val))
    both = set(train_sizes.values()) & set(val_sizes.values())  # only these are read
    known = {_digest(path) for path, size in train_sizes.items() if size in both}
    return [path for path, size in val_sizes.items() if size in both and _digest(path) in known]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
