"""Statistics of annotated photos: counts by class and size, and odd cases to check before training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.annotations.whole_file import is_box

Entry = dict[str, Any]
COCO_SIZES_PX = {"small, below 32 x 32 px": 32.0**2, "medium, below 96 x 96 px": 96.0**2, "large": float("inf")}
FEW_OBJECTS, MIN_SIDE_PX, WHOLE_PHOTO = 10, 4.0, 0.95
"""Thresholds for odd cases: objects of a class; side of an object at the network's input; share of a photo."""


@dataclass(frozen=True, slots=True)
class ClassCount:
    """A class: number of objects, of photos with them, and median of the square root of their areas, pixels (None without objects)."""

    name: str
    objects: int
    photos: int
    median_side_px: float | None


@dataclass(frozen=True, slots=True)
class Odd:
    """Something to check: description, number of cases, and the first photos, or classes, with it."""

    what: str
    count: int
    photos: tuple[str, ...]


def counts_by_class(document: Entry) -> list[ClassCount]:
    """Counts by class, crowds not counted, the most frequent class first."""
    objects = defaultdict(list)
    for found in document["annotations"]:
        if not found["iscrowd"]:
            objects[found["category_id"]].append(found)
    counts = []
    for category in document["categories"]:
        own = objects[category["id"]]
        median = float(np.median([found["area"] ** 0.5 for found in own])) if own else None
        counts.append(ClassCount(category["name"], len(own), len({found["image_id"] for found in own}), median))
    return sorted(counts, key=lambda count: -count.objects)


def counts_by_size(document: Entry) -> dict[str, int]:
    """Objects by COCO's sizes, of their areas."""
    counts = dict.fromkeys(COCO_SIZES_PX, 0)
    for found in document["annotations"]:
        if not found["iscrowd"]:
            counts[next(name for name, most in COCO_SIZES_PX.items() if found["area"] < most)] += 1
    return counts


def photo_sizes(document: Entry) -> str:
    """The sizes of the photos, as text."""
    sizes = Counter((photo["width"], photo["height"]) for photo in document["images"])
    if not sizes:
        return "no photos"
    (width, height), times = sizes.most_common(1)[0]
    common = f"{width} x {height} px ({times:,} photos)"
    if len(sizes) == 1:
        return common
    least, most = (choose(sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
    return f"{len(sizes):,} sizes from {least[0]} x {least[1]} to {most[0]} x {most[1]} px, most often {common}"


def odd_cases(document: Entry, image_size_px: int) -> list[Odd]:
    """Odd cases, each with the first photos that show it.

    Args:
        document: as `jobs.annotations.datasets.read_annotations` writes it.
        image_size_px: side of the network's input.
    """
    names = {photo["id"]: photo["file_name"] for photo in document["images"]}
    photos = {photo["id"]: photo for photo in document["images"]}
    objects = [found for found in document["annotations"] if not found["iscrowd"]]
    tests = {
        f"objects that are less than {MIN_SIDE_PX:g} px wide or high at {image_size_px} px": _tiny(
            objects, photos, image_size_px
        ),
        f"objects that cover more than {WHOLE_PHOTO:.0%} of their photo": _whole(objects, photos),
        "outlines that are their box, four points and no more": filter(is_box, objects),
    }
    found = {what: list(some) for what, some in tests.items()}
    odd = [Odd(what, len(some), _first(names[one["image_id"]] for one in some)) for what, some in found.items() if some]
    return [*odd, *_odd_classes(document)]


def _first(photos: Iterable[str], most: int = 5) -> tuple[str, ...]:
    return tuple(dict.fromkeys(photos))[:most]


def _tiny(objects: Sequence[Entry], photos: Mapping[Any, Entry], image_size_px: int) -> Iterator[Entry]:
    for found in objects:
        photo = photos[found["image_id"]]
        if min(found["bbox"][2:]) * image_size_px / max(photo["width"], photo["height"]) < MIN_SIDE_PX:
            yield found


def _whole(objects: Sequence[Entry], photos: Mapping[Any, Entry]) -> Iterator[Entry]:
    for found in objects:
        photo = photos[found["image_id"]]
        if found["area"] > WHOLE_PHOTO * photo["width"] * photo["height"]:
            yield found


def _odd_classes(document: Entry) -> Iterator[Odd]:
    if few := [f"{one.name} {one.objects}" for one in counts_by_class(document) if 0 < one.objects < FEW_OBJECTS]:
        yield Odd(f"classes with fewer than {FEW_OBJECTS} objects", len(few), _first(few))
