"""Normalises COCO files so that mmdet's training and pycocotools' metrics read them correctly.

Exports often contain what these two silently misread, or fail on with a bare KeyError: categories in another order than their ids (mmdet
numbers its channels by the file's order), RLE masks (mmdet's training skips them), objects without outline, area, box or iscrowd, points in
separate lists, numbers as text, one photo under two ids. Unambiguous cases are repaired, ambiguous ones are refused with file and
annotation, and entries that are not objects are left out; the report lists all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.annotations.coco_objects import ObjectReader
from jobs.annotations.fields import pixels
from jobs.annotations.photo_files import find_photos, missing_photos, sized
from jobs.annotations.report import AnnotationsError, Report
from jobs.annotations.whole_file import alike, refuse_shifted_ids, remarks_on

Entry = dict[str, Any]


def normalise(
    coco: Entry, source: Path, images: Path, classes: Sequence[str] | None, report: Report, *, training: bool
) -> dict[str, Any]:
    """Normalise annotations.

    Args:
        coco: the parsed file.
        source: its file, for messages.
        images: folder of the photos.
        classes: of the model; None: those of the file in the order of their ids.
        report: records what is left out or repaired.
        training: every photo must be there, and the categories are numbered in the order of the classes. With the file's own classes,
            outlines become rings that mmdet trains on as they are (`jobs.annotations.outlines`). For metrics all stays as it is:
            predictions saved earlier name the file's ids.
    Returns:
        A new document.
    Raises:
        AnnotationsError: a category that the model does not have, or an ambiguous photo, category or object.
    """
    sections = {name: _entries(coco, name, source) for name in ("images", "annotations", "categories")}
    for kind, key in (("images", "image_id"), ("categories", "category_id")):
        refuse_shifted_ids(source, kind, key, sections[kind], sections["annotations"])
    photos = _photos(sections["images"], source, images, report, all_there=training)
    ordered = _categories(sections["categories"], source)
    known = {category["id"]: category for category in ordered}
    reader = ObjectReader(source, photos, known, report, rings=training and classes is None)
    read = (reader.read(entry, number) for number, entry in enumerate(sections["annotations"]))
    objects = [found for found in read if found is not None]
    reader.refuse_other_kinds()
    ordered = _without_roots(ordered, objects, report)
    _refuse_twice(source, "category", "name", ordered, "Give one of them another name in the annotation tool, or join them.")
    names = tuple(classes or (category["name"] for category in ordered))
    _refuse_unknown(source, ordered, objects, names)
    if training:
        ids = {category["id"]: names.index(category["name"]) + 1 for category in ordered if category["name"] in names}
        objects = [found | {"category_id": ids[found["category_id"]]} for found in objects]
        ordered = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    images_left = list({photo["id"]: photo for photo in photos.values()}.values())
    report.photos, report.crowds = len(images_left), sum(found["iscrowd"] for found in objects)
    report.objects = len(objects) - report.crowds
    report.remarks += remarks_on(images_left, objects, ordered, sections["annotations"])
    return coco | {"images": images_left, "annotations": objects, "categories": ordered}


def _entries(coco: Entry, name: str, source: Path) -> list[Entry]:
    entries = coco.get(name)
    if not isinstance(entries, list):
        raise AnnotationsError(f"{source}: not COCO annotations: its {name} are not a list.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise AnnotationsError(
                f"{source}: not COCO annotations: entry {number} of its {name} is {type(entry).__name__}, not an object."
            )
    return entries


def _field(entry: Entry, name: str, place: str) -> Any:
    value = entry.get(name)
    if not isinstance(value, (str, int, float)) or value != value or value == "" or isinstance(value, bool):
        raise AnnotationsError(f"{place}: its {name} is missing or wrong: {value!r}.")
    return value


def _refuse_twice(source: Path, kind: str, key: str, entries: Sequence[Entry], remedy: str = "") -> None:
    value, times = Counter(entry[key] for entry in entries).most_common(1)[0] if entries else (None, 1)
    if times > 1:
        raise AnnotationsError(f"{source}: {times} entries with the {kind} {key} {value!r}; it must be unique. {remedy}".rstrip())


def _photos(entries: Sequence[Entry], source: Path, images: Path, report: Report, *, all_there: bool) -> dict[Any, Entry]:
    """Photos by id, with their files found and upright sizes; two entries for one file become one, under both ids."""
    for number, entry in enumerate(entries):
        place = f"{source}: photo {entry.get('id', f'number {number}')}"
        _field(entry, "id", place)
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            raise AnnotationsError(f"{place}: its file_name is missing or wrong: {entry.get('file_name')!r}.")
    _refuse_twice(source, "photo", "id", entries)
    files = find_photos([entry["file_name"] for entry in entries], images, report)
    found = [entry | {"file_name": files[entry["file_name"]]} for entry in entries]
    if all_there and (missing := missing_photos(found, images)):
        raise AnnotationsError(f"{source}: {missing}.")
    photos: dict[Any, Entry] = {}
    by_file: dict[str, Entry] = {}
    for entry in found:
        name, place = entry["file_name"], f"{source}: photo {entry['id']}"
        size = pixels(entry.get("width")), pixels(entry.get("height"))
        photo = sized(entry, size, images, place, readable=all_there)
        if not all(size):
            report.repair("sizes taken from the upright photo", name)
        first = by_file.setdefault(os.path.normpath(images / name), photo)
        if first is not photo:
            if (first["width"], first["height"]) != (photo["width"], photo["height"]):  # if the file is here, `sized` refuses one
                raise AnnotationsError(
                    f"{place}: {name} is {photo['width']} x {photo['height']} pixels, and as photo {first['id']} {first['width']} x "
                    f"{first['height']}: different photos need different names."
                )
            report.repair("photos that stand there under two ids joined", f"{name}, {first['id']} and {entry['id']}")
        photos[entry["id"]] = first
    return photos


def _categories(entries: Sequence[Entry], source: Path) -> list[Entry]:
    """The categories in the order of their ids."""
    for number, entry in enumerate(entries):
        place = f"{source}: category {entry.get('id', f'number {number}')}"
        _field(entry, "id", place)
        _field(entry, "name", place)
    _refuse_twice(source, "category", "id", entries)
    ordered = sorted(entries, key=lambda entry: (isinstance(entry["id"], str), entry["id"]))
    return [entry | {"name": str(entry["name"])} for entry in ordered]


def _without_roots(categories: list[Entry], objects: Sequence[Entry], report: Report) -> list[Entry]:
    """Drop categories that only group others, such as Roboflow's first one: no object has them, and others name them as supercategory."""
    used = {found["category_id"] for found in objects}
    groups = {group for entry in categories if isinstance(group := entry.get("supercategory"), str)}

    def is_root(entry: Entry) -> bool:
        return entry["id"] not in used and entry["name"] in groups and entry["name"] != entry.get("supercategory")

    for entry in filter(is_root, categories):
        report.repair("categories that only group others dropped", f"{entry['name']}, id {entry['id']}")
    return [entry for entry in categories if not is_root(entry)]


def _refuse_unknown(source: Path, categories: Sequence[Entry], objects: Sequence[Entry], names: Sequence[str]) -> None:
    used = {found["category_id"] for found in objects}
    unknown = {category["name"] for category in categories if category["id"] in used} - set(names)
    if unknown:
        spelled = {alike(name): name for name in names}
        shown = [f"{name} (it has {spelled[alike(name)]!r})" if alike(name) in spelled else name for name in sorted(unknown)]
        raise AnnotationsError(
            f"{source}: categories that the model does not have: {', '.join(shown)}. It has those of the training set: add "
            "photos of them there, or leave them out here."
        )
