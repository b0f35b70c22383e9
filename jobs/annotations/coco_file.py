"""A COCO file as mmdet's training and pycocotools' metrics both read it rightly.

What ordinary exports hold and these two stumble over in silence or with a bare KeyError: categories in another order than their ids (mmdet
numbers its channels by the file's order), RLE masks (mmdet's training skips them), objects without outline, area, box or iscrowd.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from jobs.photos import PhotoError, upright_size
from pipeline.masks.rle import rle_to_mask

MIN_NUMBERS = 6
MIN_BOX_IOU, MAX_BOXES_ELSEWHERE = 0.05, 0.1
"""Below the first, a box is not its outline's. Large files have a few such; above the second, a share of the objects, the boxes mean
something else, such as two corners."""


class AnnotationsError(ValueError):
    """Annotations that cannot be read; the message names the file, the place and what was expected."""


def normalise(
    coco: dict[str, Any], source: Path, images: Path, classes: Sequence[str] | None, *, training: bool
) -> tuple[dict[str, Any], Counter[str]]:
    """The same annotations in the form that everybody reads alike.

    Args:
        coco: as read.
        source: its file, for messages.
        images: folder of the photos, read where a width or height is missing.
        classes: the model's, None: the file's own in the order of their ids.
        training: number the categories in the order of the classes, and turn RLE masks, but not crowds, into polygons. For metrics
            both stay as they are: predictions saved earlier name the file's ids.
    Returns:
        A new document, and why objects were left out: how many by reason.
    Raises:
        AnnotationsError: a category that the model does not know, or a photo, category or object that cannot be understood.
    """
    try:
        return _normalise(coco, source, images, classes, training=training)
    except (AttributeError, KeyError, TypeError) as error:
        raise AnnotationsError(f"{source}: not COCO annotations, missing or wrong: {error}.") from error


def _normalise(
    coco: dict[str, Any], source: Path, images: Path, classes: Sequence[str] | None, *, training: bool
) -> tuple[dict[str, Any], Counter[str]]:
    ordered = sorted(coco["categories"], key=lambda category: category["id"])
    for kind, key, entries in (("category", "id", ordered), ("category", "name", ordered), ("photo", "id", coco["images"])):
        _refuse_twice(source, kind, key, entries)
    names = tuple(classes or (category["name"] for category in ordered))
    unknown = {category["name"] for category in ordered} - set(names)
    if unknown:
        raise AnnotationsError(
            f"{source}: categories that the model does not know: {', '.join(sorted(unknown))}. It knows what the training set has: add "
            "photos of them there, or leave them out here."
        )
    ids = {category["id"]: names.index(category["name"]) + 1 if training else category["id"] for category in ordered}
    photos = {photo["id"]: with_size(photo, source, images) for photo in coco["images"]}
    left_out: Counter[str] = Counter()
    objects: list[dict[str, Any]] = []
    elsewhere: list[str] = []
    for number, found in enumerate(coco["annotations"]):
        place = f"{source}: annotation {found.get('id', f'number {number}')}"
        photo = photos.get(found.get("image_id"))
        if photo is None or found.get("category_id") not in ids:
            left_out["of no photo or category in the file"] += 1
            continue
        try:
            outline = _outline(found, photo, traced=training)
            box = _box(found) if outline else None
        except (TypeError, ValueError, KeyError) as error:
            raise AnnotationsError(
                f"{place}: its segmentation is neither polygons nor RLE, or its bbox no box ({error})."
            ) from error
        if not outline:
            left_out["without an outline"] += 1
            continue
        whole = _completed(found | {"bbox": box}, outline, photo)
        if isinstance(outline, list) and not _overlap(whole["bbox"], outline):
            elsewhere.append(f"{place}: its bbox {whole['bbox']} lies elsewhere than its outline")
        objects.append(whole | {"id": number + 1, "category_id": ids[found["category_id"]]})
    if len(elsewhere) > max(MAX_BOXES_ELSEWHERE * len(objects), 1):
        raise AnnotationsError(f"{elsewhere[0]}, as {len(elsewhere)} of {len(objects)} do; COCO's is x, y, width, height.")
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)] if training else ordered
    return coco | {"images": list(photos.values()), "annotations": objects, "categories": categories}, left_out


def _refuse_twice(source: Path, kind: str, key: str, entries: Sequence[dict[str, Any]]) -> None:
    value, times = Counter(entry[key] for entry in entries).most_common(1)[0] if entries else (None, 1)
    if times > 1:
        raise AnnotationsError(f"{source}: {times} entries with the {kind} {key} {value!r}; it must be unique.")


def with_size(photo: dict[str, Any], source: Path | str, images: Path) -> dict[str, Any]:
    """The photo's entry with width and height, read from the file upright where they are missing.

    Raises:
        AnnotationsError: it cannot be read.
    """
    file = images / photo["file_name"]
    if photo.get("width") and photo.get("height"):
        return photo
    try:
        width, height = upright_size(file)
    except PhotoError as error:
        raise AnnotationsError(f"{source}: photo {photo.get('id')} has no width and height. {error}.") from error
    return photo | {"width": width, "height": height}


def _outline(found: dict[str, Any], photo: dict[str, Any], *, traced: bool) -> Any:
    """Polygons of 3 points and more, or RLE; empty where nothing is left."""
    outline = found.get("segmentation") or []
    if isinstance(outline, dict):
        if not traced or found.get("iscrowd"):
            to_rle(outline, (photo["height"], photo["width"]))  # raises where it is none
            return outline
        return _traced(outline, photo)
    if outline and not isinstance(outline[0], list):
        outline = [outline]
    rings = [ring for ring in outline if len(ring) >= MIN_NUMBERS and len(ring) % 2 == 0]
    if not all(np.isfinite(np.asarray(ring, np.float64)).all() for ring in rings):
        raise ValueError("a coordinate is not a finite number")
    return rings


def _box(found: dict[str, Any]) -> list[float] | None:
    """x, y, width, height of an object that has a box; zeros alone stand for none."""
    if not any(found.get("bbox") or ()):
        return None
    left, top, width, height = np.asarray(found["bbox"], np.float64).tolist()
    if not np.isfinite([left, top, width, height]).all():
        raise ValueError("a number of bbox is not finite")
    return [left, top, width, height]


def _overlap(box: Sequence[float], rings: Sequence[Sequence[float]]) -> bool:
    """Whether a box has anything to do with the one around the outline, each a pixel larger: some are lines."""
    left, top, width, height = (*box[:2], box[2] + 1, box[3] + 1)
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in rings])
    first, last = points.min(0), points.max(0) + 1
    shared = np.minimum(last, (left + width, top + height)) - np.maximum(first, (left, top))
    both = width * height + np.prod(last - first) - (inside := np.prod(np.maximum(shared, 0)))
    return bool(inside >= MIN_BOX_IOU * both)


def _traced(rle: dict[str, Any], photo: dict[str, Any]) -> list[list[float]]:
    """Outer contours of an RLE mask, x y x y ..., a quarter pixel inside its edge; holes are filled."""
    mask = rle_to_mask(to_rle(rle, (photo["height"], photo["width"])))
    enlarged = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = [((contour.reshape(-1) + 0.5) / 2).tolist() for contour in contours]
    return [ring for ring in rings if len(ring) >= MIN_NUMBERS]


def to_rle(segmentation: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """COCO's polygons, plain run lengths or compressed ones → compressed run lengths.

    Args:
        segmentation: of an annotation or a result, pixels.
        size_hw: of the photo, pixels.
    """
    height, width = size_hw
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def _completed(found: dict[str, Any], outline: Any, photo: dict[str, Any]) -> dict[str, Any]:
    """The object with its outline, iscrowd, area and box."""
    whole = found | {"segmentation": outline, "iscrowd": int(found.get("iscrowd") or 0)}
    if whole.get("area") is None or not whole.get("bbox"):
        rle = to_rle(outline, (photo["height"], photo["width"]))
        whole["area"] = float(coco_mask.area(rle)) if whole.get("area") is None else whole["area"]
        whole["bbox"] = whole.get("bbox") or coco_mask.toBbox(rle).tolist()
    return whole


def missing_photos(coco: dict[str, Any], images: Path, most: int = 3) -> str | None:
    """What to say of photos that are not in the folder; None where all are."""
    missing = [photo["file_name"] for photo in coco["images"] if not (images / photo["file_name"]).is_file()]
    if not missing:
        return None
    named = ", ".join(itertools.islice(missing, most))
    said = f"{len(missing)} of {len(coco['images'])} photos are missing in {images}, first: {named}"
    if "/" in missing[0] and (images / Path(missing[0]).name).is_file():
        said += f" ({Path(missing[0]).name} is there, without its folders: name the folder that they are in, or move the photos into them)"
    return said


def wrong_size(coco: dict[str, Any], images: Path) -> str | None:
    """What to say of the first photo that cannot be read, or is of another size than its annotations; None where all fit."""
    for photo in coco["images"]:
        try:
            size = upright_size(images / photo["file_name"])
        except PhotoError as error:
            return str(error)
        annotated = photo["width"], photo["height"]
        if size != annotated:
            return (
                f"{photo['file_name']} is {size[0]} x {size[1]} pixels upright, as its orientation turns it, but is annotated as "
                f"{annotated[0]} x {annotated[1]}: its outlines would lie in the wrong place"
            )
    return None
