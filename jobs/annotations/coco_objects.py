"""Checks COCO annotations one by one: each is an object for training and metrics, or is reported as left out.

photo and category known ─▶ an outline ─▶ on its photo, at least a pixel wide, high and large ─▶ box, area, iscrowd ─▶ object
                              a box alone ─▶ crowd
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from jobs.annotations.fields import flag, known_id, number
from jobs.annotations.outlines import (
    Outline,
    OutlineError,
    has_ring_in_ring,
    mask_area,
    outline_box_xywh,
    outline_to_rings,
    reach_beyond,
    read_outline,
)
from jobs.annotations.report import AnnotationsError, Report

Entry = dict[str, Any]
MIN_BOX_IOU, CORNERS_IOU = 0.5, 0.9
"""Below MIN_BOX_IOU, a box does not fit its outline; it is two corners, or one of both has y before x, if that fits by CORNERS_IOU."""
CLOSE_IOU, STOUT_BOX_PX, MAJORITY = 0.8, 8, 0.5
"""Boxes of most objects have a larger IoU with their outlines, or with their centres at x and y; smaller ones differ by rounding."""
ELSEWHERE_IOU = 0.05
"""Below this IoU, a box is unrelated to its outline."""
AREA_FACTOR = 2.0
"""An area further than this factor from that of the outline and from that of its box is of neither, such as a share of the photo."""
STOUT_PX = 3.0
"""An outline with a larger mean thickness certainly contains pixels."""
MAX_OF_OTHER_KIND = 0.1
"""Largest share of objects with odd coordinates. Above it, the file's coordinates must have another meaning, and it is refused."""
FRACTIONS, MIN_SIDE_PX = (-0.5, 1.5), 4
"""Range of outlines in fractions of the photo, with some slack; in photos smaller than MIN_SIDE_PX they look like pixels."""


BOX_ALONE = "without an outline: nothing is learned or counted in their boxes"
FAR_BEYOND = 0.05
"""Share of a photo's longer side; annotation tools let outlines reach a little beyond the photo."""


class ObjectReader:
    """Reads the annotations of one file.

    Args:
        source: the file, for messages.
        photos: by id, with `width` and `height`.
        categories: by id.
        report: records what is left out or repaired.
        rings: return outlines as rings, for training.
    """

    def __init__(
        self, source: Path, photos: Mapping[Any, Entry], categories: Mapping[Any, Entry], report: Report, *, rings: bool
    ) -> None:
        self._source, self._photos, self._categories = source, photos, categories
        self._report, self._rings = report, rings
        self._outlined = self._objects = 0
        self._other_kinds: dict[str, list[str]] = {}
        self._loose: list[tuple[float, str]] = []

    def read(self, entry: Entry, place_in_file: int) -> Entry | None:
        """The object; None if the entry is left out, which is then reported.

        Raises:
            AnnotationsError: the entry is ambiguous.
        """
        where = entry.get("_place") or f"annotation {entry.get('id', f'number {place_in_file}')}"
        photo = self._photos.get(known_id(entry.get("image_id"), self._photos))
        category = known_id(entry.get("category_id"), self._categories)
        if photo is None or category is None:
            key, kind = ("image_id", "photo") if photo is None else ("category_id", "category")
            self._report.leave_out(f"of no {kind} in the file", f"{where}, {key} {entry.get(key)!r}")
            return None
        where += "" if "_place" in entry else f", {photo['file_name']}"
        size_hw = photo["height"], photo["width"]
        try:
            outline, short = read_outline(entry.get("segmentation"), size_hw)
            crowd = _is_crowd(entry)
        except OutlineError as error:
            raise AnnotationsError(f"{self._source}: {where}: {error}.") from error
        if short:
            self._report.leave_out("polygons of fewer than three points", where)
        if not outline:
            box = _ring_of_box(entry.get("bbox"), size_hw)
            if not short:
                self._report.leave_out(BOX_ALONE if box else "without an outline", where)
            if not box:
                return None
            outline, crowd = [box], True
        elif not self._is_object(outline, size_hw, where):
            return None
        self._objects += 1
        found = {key: value for key, value in entry.items() if key not in ("_place", "ignore")}
        found |= {"id": self._objects, "image_id": photo["id"], "category_id": category, "iscrowd": int(crowd)}
        found |= {"bbox": self._box(entry, outline, size_hw, where), "area": self._area(entry, outline, size_hw, where)}
        return found | {"segmentation": outline_to_rings(outline, size_hw) if self._rings else outline}

    def refuse_other_kinds(self) -> None:
        """Raise AnnotationsError if more than a few outlines or boxes are not in COCO's form."""
        for kind, places in self._other_kinds.items():
            if len(places) > max(MAX_OF_OTHER_KIND * self._outlined, 1) or len(places) == self._outlined:
                raise AnnotationsError(f"{self._source}: {places[0]}: {kind}, as {len(places)} of {self._outlined} do.")
        misfits = [where for overlap, where in self._loose if overlap < MIN_BOX_IOU]
        if len(misfits) > MAJORITY * self._outlined:
            raise AnnotationsError(
                f"{self._source}: {misfits[0]}: its bbox does not fit its outline, as {len(misfits)} of {self._outlined} do: one of "
                "both is of another size or object, or run lengths go along the rows, where COCO's go down the columns. If the outlines "
                "are right, remove the boxes."
            )
        if len(self._loose) > MAJORITY * self._outlined:
            for _, where in self._loose:
                self._report.note(
                    f"boxes fit their outlines loosely (IoU below {CLOSE_IOU:g}): is one of both of another size?", where
                )

    def _is_object(self, outline: Outline, size_hw: tuple[int, int], where: str) -> bool:
        """Whether the outline is used; what is left out or odd is reported."""
        self._outlined += 1
        if reason := self._why_no_object(outline, size_hw, where):
            self._report.leave_out(reason, where)
            return False
        if has_ring_in_ring(outline):
            self._report.note("objects have a ring within another. COCO unites them; if it is a hole, write run lengths", where)
        if reach_beyond(outline, size_hw) > FAR_BEYOND:
            self._report.note(f"outlines reach more than {FAR_BEYOND:.0%} beyond their photo and are cut at its edge", where)
        return True

    def _why_no_object(self, outline: Outline, size_hw: tuple[int, int], where: str) -> str | None:
        if isinstance(outline, list):
            if _like_fractions(outline, size_hw):
                self._suspect("its coordinates lie between 0 and 1, fractions of the photo where COCO has pixels", where)
                return "with coordinates like fractions of the photo"
            if _is_outside(outline, size_hw):
                self._suspect("its outline lies outside its photo", where)
                return "outside their photo"
        *_, width, height = outline_box_xywh(outline, size_hw)
        if width < 1 or height < 1 or not (_is_stout(outline, size_hw) or mask_area(outline, size_hw) >= 1):
            return "smaller than a pixel"
        return None

    def _suspect(self, kind: str, where: str) -> None:
        self._other_kinds.setdefault(kind, []).append(where)

    def _box(self, entry: Entry, outline: Outline, size_hw: tuple[int, int], where: str) -> list[float]:
        """x, y, width, height: the entry's box if it fits the outline, else the outline's."""
        around, given = outline_box_xywh(outline, size_hw), entry.get("bbox")
        numbers = [number(value) for value in given] if isinstance(given, list) else []
        box = [value for value in numbers if value is not None]
        if not any(box):
            return around
        if len(box) == len(numbers) == 4:
            overlap, as_corners = (
                enlarged_box_iou(box, around),
                enlarged_box_iou([*box[:2], box[2] - box[0], box[3] - box[1]], around),
            )
            centred = enlarged_box_iou([box[0] - box[2] / 2, box[1] - box[3] / 2, *box[2:]], around)
            if max(overlap, centred) < CLOSE_IOU and min(around[2:]) >= STOUT_BOX_PX:
                self._loose.append((overlap, where))
            if as_corners > max(overlap, CORNERS_IOU):
                self._suspect("its bbox is two corners, where COCO has x, y, width, height", where)
            elif overlap >= MIN_BOX_IOU and min(box[2:]) >= 1:
                return box
            elif enlarged_box_iou([box[1], box[0], box[3], box[2]], around) > CORNERS_IOU:
                self._suspect("its outline fits its bbox with x and y exchanged; COCO has x before y", where)
            elif overlap < ELSEWHERE_IOU:
                self._suspect("its bbox lies elsewhere than its outline; COCO's is x, y, width, height", where)
        self._report.repair("boxes taken from the outline", where)
        return around

    def _area(self, entry: Entry, outline: Outline, size_hw: tuple[int, int], where: str) -> float:
        given = number(entry.get("area"))
        if given and given > 0 and _may_be_area(given, outline, size_hw):
            return given
        if "area" in entry:
            self._report.repair("areas taken from the outline", where)
        return mask_area(outline, size_hw)


def _ring_of_box(bbox: Any, size_hw: tuple[int, int]) -> list[float] | None:
    """The corners of a box in COCO's form that lies within the photo; None if it is none."""
    numbers = [number(value) for value in bbox] if isinstance(bbox, list) else []
    box = [value for value in numbers if value is not None]
    if not len(box) == len(numbers) == 4 or min(box[2:]) < 1:
        return None
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    slack = FAR_BEYOND * max(size_hw)
    if min(left, top) < -slack or right > size_hw[1] + slack or bottom > size_hw[0] + slack:
        return None
    return [left, top, right, top, right, bottom, left, bottom]


def _may_be_area(given: float, outline: Outline, size_hw: tuple[int, int]) -> bool:
    """Whether an area may be that of the outline or, as some tools write, of its box."""
    _, _, width, height = outline_box_xywh(outline, size_hw)
    of_box = (width + 1) * (height + 1)
    if of_box / AREA_FACTOR <= given <= of_box * AREA_FACTOR:
        return True
    of_mask = mask_area(outline, size_hw)
    return of_mask / AREA_FACTOR <= given <= of_mask * AREA_FACTOR


def enlarged_box_iou(box: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two boxes x, y, width, height, each a pixel wider and higher, because some outlines are lines."""
    first, second = (np.add(each, (0.0, 0.0, 1.0, 1.0))[None] for each in (box, other))
    return float(coco_mask.iou(first, second, [False])[0, 0])


def _is_crowd(entry: Entry) -> bool:
    """Whether it is marked `iscrowd`, or `ignore`, which mmdet leaves out of training and pycocotools does not support."""
    crowd, ignore = flag(entry.get("iscrowd")), flag(entry.get("ignore"))
    if crowd is None or ignore is None:
        wrong = "iscrowd" if crowd is None else "ignore"
        raise OutlineError(f"its {wrong} is {entry[wrong]!r}, where 0 or 1 is expected")
    return crowd or ignore


def _like_fractions(rings: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> bool:
    numbers = np.concatenate(rings)
    return min(size_hw) >= MIN_SIDE_PX and FRACTIONS[0] <= numbers.min() and numbers.max() <= FRACTIONS[1]


def _is_outside(rings: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> bool:
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in rings])
    return bool((points.max(0) <= 0).any() or (points.min(0) >= size_hw[::-1]).any())


def _is_stout(outline: Outline, size_hw: tuple[int, int]) -> bool:
    """Whether a single ring within the photo certainly contains a pixel, by its mean thickness: twice its area over its length."""
    if isinstance(outline, dict) or len(outline) > 1 or reach_beyond(outline, size_hw):
        return False
    points = np.reshape(outline[0], (-1, 2))
    following = np.roll(points, -1, axis=0)
    area = abs(np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1])) / 2
    return bool(2 * area >= STOUT_PX * np.hypot(*(following - points).T).sum())
