"""What a whole COCO file shows, though each entry is valid: ids off by one, coordinates with another meaning.

What can only be a fault is refused; the rest is a remark in the report, for all commands.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.annotations.fields import flag, known_id
from jobs.annotations.report import AnnotationsError
from pipeline.types import DetectOptions

Entry = dict[str, Any]
MAX_CROWDS = 0.1
"""Share of crowds that a file may have without a remark; COCO's have one in a hundred."""
MANY_EMPTY, MANY_BOXES, ENOUGH = 0.5, 0.9, 20
"""Shares above which empty photos, and outlines that are boxes, get a remark; and fewest objects from which is concluded on the file."""
CORNER_SHARE, PERCENT = 0.6, 102
"""Objects that reach no further than this share of their photos are in a corner; percentages reach little further than 100."""


def refuse_shifted_ids(
    source: Path, kind: str, key: str, entries: Sequence[Entry], named_by: Sequence[Entry], what: str = "annotations"
) -> None:
    """Raise AnnotationsError if the ids that annotations or results name are those of the entries plus or minus one.

    Converters number one of the two from 0 and the other from 1. Then nearly all name a wrong photo or category, and only those at the end
    name none.

    Args:
        source: file of the annotations or results.
        kind, key: "images" and "image_id", or "categories" and "category_id".
        entries: the photos or categories.
        named_by, what: the annotations or results, and their name.
    """
    known = {entry.get("id") for entry in entries if isinstance(entry.get("id"), (int, float, str))}
    named = {value for entry in named_by if isinstance(value := entry.get(key), (int, float, str))}
    unknown = [value for value in named if known_id(value, known) is None]
    if not unknown:
        return
    for step, where in ((1, "above"), (-1, "below")):
        if all(known_id(_plus(value, -step), known) is not None for value in named):
            first = min(unknown, key=str)
            raise AnnotationsError(
                f"{source}: each {key} of the {what} is one {where} an id of the {kind}, and {first!r} is none of them: they seem to be "
                f"numbered from 0 and from 1. Number both alike, or delete the {what} with {key} {first!r} if the others are right."
            )


def _plus(value: Any, step: int) -> Any:
    """The id that much further; None if it is not a whole number."""
    try:
        return int(value) + step if float(value).is_integer() else None
    except (ValueError, OverflowError):
        return None


def remarks_on(
    photos: Sequence[Entry], objects: Sequence[Entry], categories: Sequence[Entry], entries: Sequence[Entry]
) -> list[str]:
    """Remarks about normalised photos, objects and categories.

    Args:
        entries: the annotations as the file has them.
    """
    no_crowds = [found for found in objects if not found["iscrowd"]]
    checks = (
        _empty_photos(photos, objects),
        _annotated_twice(photos, no_crowds),
        _classes(categories, no_crowds),
        _more_than_are_found(photos, no_crowds),
        _boxes_as_outlines(no_crowds),
        _in_a_corner(photos, no_crowds),
        _many_crowds(entries),
    )
    return [remark for check in checks for remark in check]


def _empty_photos(photos: Sequence[Entry], objects: Sequence[Entry]) -> Iterator[str]:
    shown = {found["image_id"] for found in objects}
    if empty := sum(photo["id"] not in shown for photo in photos):
        doubt = (
            ": are all photos annotated? What they show is background to a training" if empty > MANY_EMPTY * len(photos) else ""
        )
        yield f"{empty:,} photos without objects{doubt}"


def _annotated_twice(photos: Sequence[Entry], objects: Sequence[Entry]) -> Iterator[str]:
    times = Counter((found["image_id"], found["category_id"], *map(round, found["bbox"])) for found in objects)
    if twice := times.total() - len(times):
        (image_id, *_), _ = times.most_common(1)[0]
        name = next(photo["file_name"] for photo in photos if photo["id"] == image_id)
        yield f"{twice:,} objects annotated twice, the same class and box in one photo (such as in {name})"


def _classes(categories: Sequence[Entry], objects: Sequence[Entry]) -> Iterator[str]:
    used = {found["category_id"] for found in objects}
    if unused := [category["name"] for category in categories if category["id"] not in used]:
        yield f"no object of {', '.join(unused)}"
    if odd := [category["name"] for category in categories if category["name"] != category["name"].strip()]:
        yield f"classes with blanks or line breaks around their names, which answers will have: {', '.join(map(repr, odd))}"
    names: dict[str, list[str]] = defaultdict(list)
    for category in categories:
        names[alike(category["name"])].append(category["name"])
    if groups := [" and ".join(map(repr, group)) for group in names.values() if len(group) > 1]:
        yield f"classes that differ in capitals or spaces alone: {', '.join(groups)}. Join those that are one"


def alike(name: str) -> str:
    """The same for names that differ in capitals or spaces alone."""
    return "".join(name.lower().split())


def _more_than_are_found(photos: Sequence[Entry], objects: Sequence[Entry]) -> Iterator[str]:
    times, limit = Counter(found["image_id"] for found in objects), DetectOptions().max_detections
    if dense := sum(number > limit for number in times.values()):
        image_id, number = times.most_common(1)[0]
        name = next(photo["file_name"] for photo in photos if photo["id"] == image_id)
        yield (
            f"{dense:,} photos with more than {limit} objects ({name} has {number:,}), of which at most {limit} are found and counted; "
            "jobs.tiles cuts photos into parts"
        )


def _boxes_as_outlines(objects: Sequence[Entry]) -> Iterator[str]:
    boxes = sum(map(is_box, objects))
    if len(objects) >= ENOUGH and boxes > MANY_BOXES * len(objects):
        yield f"{boxes:,} of {len(objects):,} outlines are boxes, four points and no more: masks learned from them are boxes, too"


def is_box(found: Entry) -> bool:
    """Whether the outline is an upright rectangle."""
    outline = found["segmentation"]
    if not isinstance(outline, list) or len(outline) != 1 or len(outline[0]) not in (8, 10):
        return False
    points = np.reshape(outline[0], (-1, 2))
    return len(np.unique(points[:, 0])) == len(np.unique(points[:, 1])) == 2


def _in_a_corner(photos: Sequence[Entry], objects: Sequence[Entry]) -> Iterator[str]:
    """All objects in the top left corner."""
    if len(objects) < ENOUGH:
        return
    by_id = {photo["id"]: photo for photo in photos}
    reach_px = share = 0.0
    for found in objects:
        photo, (left, top, width, height) = by_id[found["image_id"]], found["bbox"]
        reach_px = max(reach_px, left + width, top + height)
        share = max(share, (left + width) / photo["width"], (top + height) / photo["height"])
    if share < CORNER_SHARE:
        meaning = "percentages, or " if reach_px <= PERCENT else ""
        yield f"all objects lie in the top left {share:.0%} of their photos: are the coordinates {meaning}of a smaller size?"


def _many_crowds(entries: Sequence[Entry]) -> Iterator[str]:
    """Many crowds: several tools mark each mask as one."""
    crowds = sum(bool(flag(entry.get("iscrowd"))) for entry in entries)
    if crowds > MAX_CROWDS * len(entries):
        yield (
            f"{crowds:,} of {len(entries):,} annotations have iscrowd 1, so they are neither trained on nor counted. CVAT and others mark "
            "all masks so: where each is one object, set iscrowd to 0"
        )
