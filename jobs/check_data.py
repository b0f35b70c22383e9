"""Check annotated photos before training.

    python -m jobs.check_data train.json --images photos/ [--output check.html]

Reads the annotations as `jobs.finetune` does and decodes every photo. Prints what was left out, repaired or odd, counts by class and size,
and writes a page of pictures with the masks that training uses. Exit status: 0 if training would run, 1 if a photo cannot be
decoded, 2 if the annotations are refused or, with --strict, anything was left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import html_page
from jobs.annotations.datasets import Annotations, AnnotationsError, read_annotations
from jobs.annotations.report import ANNOTATIONS_HELP, STRICT_HELP
from jobs.annotations.whole_file import is_box
from jobs.atomic_write import write_atomically
from jobs.command_line import check_outputs, cli_errors, count
from jobs.photo_copies import originals, thumbnails
from jobs.photos import OF_MACOS, PhotoError, photo_suffixes
from jobs.sheets import Sheet, sheets_of_annotations

PICTURE_SIDE_PX = 640
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


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings about an annotated set of photos.

    Args:
        report: of the annotations, as lines.
        classes, sizes: objects by class, and by size.
        photos: their sizes, as text.
        odd: things to look at.
        faults: photos that cannot be decoded, one line each.
    """

    report: str
    classes: list[ClassCount]
    sizes: dict[str, int]
    photos: str
    odd: list[Odd]
    faults: list[str]


def look(annotations: Annotations, image_size_px: int) -> Findings:
    """Decode every photo and collect the findings."""
    document = annotations.document()
    faults, odd_photos = _decode_all(annotations.images, document)
    odd = [*odd_cases(document, image_size_px), *odd_photos, *_not_annotated(annotations.images, document)]
    return Findings(annotations.summary, counts_by_class(document), counts_by_size(document), photo_sizes(document), odd, faults)


def _decode_all(images: Path, document: dict[str, Any]) -> tuple[list[str], list[Odd]]:
    """Photos that cannot be decoded; copies, and photos that may have been annotated as stored instead of upright."""
    names = [photo["file_name"] for photo in document["images"]]
    found = thumbnails([images / name for name in names])
    places = originals(found.bgr)
    twins = np.flatnonzero(places >= 0)
    shown = dict.fromkeys(names[place] for copy in twins for place in (places[copy], copy))
    what = "photos that are copies of others, also in another size or format"
    copies = [Odd(what, len(twins), tuple(shown)[:4])] if twins.size else []
    rotated = [names[place] for place in np.flatnonzero(found.changed_unseen)]
    what = "photos rotated or mirrored by their EXIF orientation, of the same size as before: do the outlines fit?"
    return found.faults, [*copies, *([Odd(what, len(rotated), tuple(rotated[:4]))] if rotated else [])]


def _not_annotated(images: Path, document: dict[str, Any]) -> Iterator[Odd]:
    known = {photo["file_name"] for photo in document["images"]}
    suffixes = photo_suffixes()
    files = (
        path
        for path in sorted(images.rglob("*"))
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(OF_MACOS)
    )
    others = [name for name in (path.relative_to(images).as_posix() for path in files) if name not in known]
    if others:
        yield Odd("photos in the folder that the annotations do not name", len(others), tuple(others[:5]))


def counts_by_class(document: dict[str, Any]) -> list[ClassCount]:
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


def counts_by_size(document: dict[str, Any]) -> dict[str, int]:
    """Objects by COCO's sizes, of their areas."""
    counts = dict.fromkeys(COCO_SIZES_PX, 0)
    for found in document["annotations"]:
        if not found["iscrowd"]:
            counts[next(name for name, end in COCO_SIZES_PX.items() if found["area"] < end)] += 1
    return counts


def photo_sizes(document: dict[str, Any]) -> str:
    """The sizes of the photos, as text."""
    sizes = Counter((photo["width"], photo["height"]) for photo in document["images"])
    if not sizes:
        return "no photos"
    (width, height), times = sizes.most_common(1)[0]
    common = f"{width} x {height} px ({times:,} photos)"
    if len(sizes) == 1:
        return common
    smallest, largest = (choose(sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
    return f"{len(sizes):,} sizes from {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} px, most often {common}"


def odd_cases(document: dict[str, Any], image_size_px: int) -> list[Odd]:
    """Odd cases, each with the first photos that show it.

    Args:
        document: as `jobs.annotations.datasets.read_annotations` writes it.
        image_size_px: side of the network's input.
    """
    photos = {photo["id"]: photo for photo in document["images"]}
    tiny = f"objects that are less than {MIN_SIDE_PX:g} px wide or high at {image_size_px} px"
    whole = f"objects that cover more than {WHOLE_PHOTO:.0%} of their photo"
    boxes, few = "outlines that are their box, four points and no more", f"classes with fewer than {FEW_OBJECTS} objects"
    cases: dict[str, list[str]] = {tiny: [], whole: [], boxes: []}
    for found in document["annotations"]:
        photo, name = photos[found["image_id"]], photos[found["image_id"]]["file_name"]
        if found["iscrowd"]:
            continue
        if min(found["bbox"][2:]) * image_size_px / max(photo["width"], photo["height"]) < MIN_SIDE_PX:
            cases[tiny].append(name)
        if found["area"] > WHOLE_PHOTO * photo["width"] * photo["height"]:
            cases[whole].append(name)
        if is_box(found):
            cases[boxes].append(name)
    cases[few] = [f"{one.name} {one.objects}" for one in counts_by_class(document) if 0 < one.objects < FEW_OBJECTS]
    return [Odd(what, len(names), tuple(dict.fromkeys(names))[:5]) for what, names in cases.items() if names]


def as_text(findings: Findings) -> str:
    """The findings for a terminal."""
    width = max((len(one.name) for one in findings.classes), default=0)
    lines = [findings.report, f"photos: {findings.photos}", "objects by class:"]
    lines += [f"  {one.name.ljust(width)}  {one.objects:>7,} in {one.photos:,} photos, {_side(one)}" for one in findings.classes]
    lines += ["objects by size:", *(f"  {name}: {number:,}" for name, number in findings.sizes.items())]
    lines += ["worth a look:"] if findings.odd else []
    lines += [f"  {odd.count:,} {odd.what}{_named(odd)}" for odd in findings.odd]
    lines += [f"cannot be decoded: {fault}" for fault in findings.faults]
    return "\n".join(lines)


def _named(odd: Odd) -> str:
    return f" (first: {', '.join(odd.photos)})" if odd.photos else ""


def _side(one: ClassCount) -> str:
    return "none" if one.median_side_px is None else f"median side {one.median_side_px:.0f} px"


def as_page(findings: Findings, sheets: Sequence[Sheet], title: str, pictures: int) -> str:
    """The findings as HTML, with pictures of odd cases, and of `pictures` other photos spread over the file."""
    classes = [(one.name, f"{one.objects:,}", f"{one.photos:,}", _side(one)) for one in findings.classes]
    sizes = [(name, f"{number:,}") for name, number in findings.sizes.items()]
    by_name = {sheet.name: sheet for sheet in sheets}
    odd = [(f"{one.what}: {name}", by_name[name]) for one in findings.odd for name in one.photos if name in by_name]
    every = max(len(sheets) // pictures, 1)
    others = [(sheet.name, sheet) for sheet in sheets[::every]][:pictures]
    return html_page.page(
        title,
        [
            html_page.text_block("\n".join([findings.report, f"photos: {findings.photos}", *findings.faults])),
            html_page.table(["class", "objects", "in photos", "size"], classes),
            html_page.table(["size of objects", "objects"], sizes),
            html_page.heading("Worth a look"),
            html_page.table(
                ["what", "how many", "first"], [(one.what, f"{one.count:,}", ", ".join(one.photos)) for one in findings.odd]
            ),
            html_page.gallery(_figures(odd[:pictures])),
            html_page.heading("Samples as training sees them"),
            html_page.gallery(_figures(others)),
        ],
    )


def _figures(chosen: Sequence[tuple[str, Sheet]]) -> Iterator[str]:
    for caption, sheet in chosen:
        try:
            yield html_page.picture(sheet.draw(PICTURE_SIDE_PX), f"{caption} ({len(sheet.panels[0].objects)} objects)")
        except PhotoError as error:
            yield html_page.text_block(str(error))


@cli_errors("jobs.check_data", AnnotationsError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    args = _parser().parse_args(argv)
    check_outputs({"--output": args.output}, {"the annotations": args.annotations})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        annotations = read_annotations(args.annotations, args.images, Path(scratch), training=True, strict=args.strict)
        findings = look(annotations, args.image_size)
        print(as_text(findings), flush=True)
        title = f"{args.annotations.name} and the photos in {args.images}"
        sheets = sheets_of_annotations(annotations, even_odd=True)
        write_atomically(args.output, as_page(findings, sheets, title, args.pictures))
    print(f"{args.output}: written")
    return 1 if findings.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.check_data", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("annotations", type=Path, help=ANNOTATIONS_HELP)
    add("--images", type=Path, required=True, help="folder of the photos")
    add("--strict", action="store_true", help=STRICT_HELP)
    add(
        "--image-size",
        type=count,
        default=640,
        help="side of the network's input that training will have, px (default: %(default)s)",
    )
    add(
        "--pictures",
        type=count,
        default=24,
        help="pictures on the page: at most this many of odd cases, and as many of others (default: %(default)s)",
    )
    add("--output", type=Path, default=Path("check.html"), help="the page (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
