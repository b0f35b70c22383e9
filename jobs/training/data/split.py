"""Splits the training photos into training and validation."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import AnnotationsError
from jobs.atomic_write import write_atomically

SPLIT_SEED = 0
OF_ONE_PHOTO = r"^(.+?)(?:\.rf\.\w+|_\d+_\d+_\d+x\d+)\.\w+$"
"""Names of Roboflow's augmented photos and of tiles by `jobs.tiles`; those of one photo begin alike."""


def split(
    coco: dict[str, Any], share: float, group: str | None, copies: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split annotations into training and validation, the same photos each time: runs of different seeds are measured on the same ones.

    Args:
        coco: COCO annotations.
        share: of the photos for validation, 0..1; approximate, because groups are not split: at most half of a group more or less, or,
            if all groups are too large for that, the smallest one.
        group: regular expression; what its first group (or all of it) matches in a file name says which photos belong together. None:
            each photo is its own group, but for `OF_ONE_PHOTO`; so is one that does not match.
        copies: names of photos that are copies of others, with the names of those; they are on the same side.
    Raises:
        AnnotationsError: the pattern is not a regular expression or matches no file name, or one of the two parts would be empty.
    """
    files = [photo["file_name"] for photo in coco["images"]]
    matched = [_group_in(file, group or OF_ONE_PHOTO) for file in files]
    if group and files and not any(matched):
        raise AnnotationsError(f"--val-group {group}: no photo's file name matches (first: {files[0]}).")
    keys = _joined({file: name or file for file, name in zip(files, matched, strict=True)}, copies or {})
    groups: dict[str, list[Any]] = defaultdict(list)
    for photo in coco["images"]:
        groups[keys[photo["file_name"]]].append(photo["id"])
    names = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(names)
    wanted, chosen = share * len(coco["images"]), set[Any]()
    for name in names:
        if len(chosen) + len(groups[name]) / 2 <= wanted:
            chosen |= set(groups[name])
    if names and not chosen:
        chosen = set(groups[min(names, key=lambda name: len(groups[name]))])
    if len(chosen) == len(coco["images"]):
        why = (
            f"--val-group {group}: all {len(chosen)} photos are one group"
            if group
            else f"--val-share: there is {len(chosen)} photo"
        )
        raise AnnotationsError(f"{why}, so none is left to train on.")
    train, val = (
        coco
        | {
            "images": [photo for photo in coco["images"] if (photo["id"] in chosen) == held_back],
            "annotations": [found for found in coco["annotations"] if (found["image_id"] in chosen) == held_back],
        }
        for held_back in (False, True)
    )
    return train, val


def _joined(keys: dict[str, str], copies: Mapping[str, str]) -> dict[str, str]:
    """The group of each photo, where groups of copies are one."""
    into: dict[str, str] = {}

    def last(key: str) -> str:
        while key in into:
            key = into[key]
        return key

    for copy, original in copies.items():
        own, other = last(keys[copy]), last(keys[original])
        if own != other:
            into[own] = other
    return {name: last(key) for name, key in keys.items()}


def _group_in(file_name: str, group: str) -> str | None:
    """What the pattern's first group matches; None if it does not match."""
    try:
        found = re.search(group, file_name)
    except re.error as error:
        raise AnnotationsError(f"--val-group {group}: not a regular expression ({error}).") from error
    return (found[1] if found.re.groups else found[0]) if found else None


def write_split(
    whole: Annotations, folder: Path, share: float, group: str | None, copies: Mapping[str, str]
) -> tuple[Path, Path]:
    """Split annotations and write train.json and val.json into a folder; arguments as `split`."""
    parts = split(whole.document(), share, group, copies)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.json", folder / "val.json"
    for path, part in zip(paths, parts, strict=True):
        write_atomically(path, json.dumps(part))
    return paths
