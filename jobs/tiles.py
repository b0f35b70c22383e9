"""Cut annotated photos into tiles, so that small objects are larger for the network that trains on them.

    python -m jobs.tiles train.json --images photos/ --output tiled/ --tiles 2
    python -m jobs.finetune --train tiled/annotations.json --train-images tiled/images …      then jobs.batch_ray --tiles 2 scores alike

    annotations, photos ─▶ overlapping square tiles ─▶ tiled/images/<photo>_<x>_<y>_<width>x<height>.jpg,
                                                               tiled/annotations.json (COCO, masks as run lengths)

An object of which a tile shows less than --min-visible is written as `iscrowd`, which training leaves out of its losses. With --whole, the
photos themselves are in the new set, too: what is larger than a tile is seen there alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.annotations.outlines import BoxMask, box_mask_to_rle, outline_to_rle, rle_to_box_mask
from jobs.annotations.report import ANNOTATIONS_HELP, STRICT_HELP
from jobs.atomic_write import write_atomically
from jobs.command_line import cli_errors, count, fraction, progress
from jobs.photos import WHITE_LEVEL_HELP, PhotoError, read_photo
from jobs.scoring.tiles import MAX_OVERLAP, Grid

JPEG_QUALITY = 95
LONGEST_NAME = 200
"""Bytes of a photo's name in that of its tiles; file systems allow 255 for all of it."""
Entry = dict[str, Any]
TileBox = tuple[int, int, int, int]
"""A tile in its photo: x, y, width, height, pixels."""


@cli_errors("jobs.tiles", AnnotationsError, PhotoError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 the arguments, the annotations or a photo cannot be used."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.tiles < 2 or args.overlap > MAX_OVERLAP:
        parser.error(f"--tiles is 2 or more, --overlap at most {MAX_OVERLAP}")
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(
            f"--output: {args.output} is not empty; tiles of another set would be mixed with these. Delete it, or name a new folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        annotations = read_annotations(args.annotations, args.images, Path(scratch), strict=args.strict)
        print(annotations.summary)
        truth = annotations.document()
    (args.output / "images").mkdir(parents=True)
    try:
        tiled = cut_all(truth, args.images, args.output / "images", args)
        write_atomically(args.output / "annotations.json", json.dumps(tiled))
    except BaseException:
        shutil.rmtree(args.output / "images", ignore_errors=True)  # tiles without annotations, in the way of the same command
        raise
    crowds = sum(found["iscrowd"] for found in tiled["annotations"])
    print(
        f"{args.output}/annotations.json: {len(truth['images']):,} photos are {len(tiled['images']):,} images now; "
        f"{len(truth['annotations']):,} objects are {len(tiled['annotations']) - crowds:,}, and {crowds:,} regions left out of the losses"
    )
    return 0


def cut_all(truth: Entry, photos: Path, output: Path, args: argparse.Namespace) -> Entry:
    """Write the tiles of all photos; returns their COCO document."""
    images: list[Entry] = []
    annotations: list[Entry] = []
    of_photo: dict[Any, list[Entry]] = {image["id"]: [] for image in truth["images"]}
    for found in truth["annotations"]:
        of_photo[found["image_id"]].append(found)
    for image in progress(truth["images"]):
        pixels = read_photo(photos / image["file_name"], white_level=args.white_level)
        size_hw = pixels.shape[0], pixels.shape[1]
        if size_hw != (image["height"], image["width"]):
            raise AnnotationsError(f"{image['file_name']} has {size_hw[1]} x {size_hw[0]} pixels, its annotations say otherwise")
        first = len(images)
        for x, y, width, height in tile_boxes(size_hw, args.tiles, args.overlap, whole=args.whole):
            name = f"{short(image['file_name'])}_{x}_{y}_{width}x{height}.jpg"
            if (output / name).exists():
                raise AnnotationsError(f"two photos have tiles named {name}; one of them is {image['file_name']}: rename it")
            crop = np.ascontiguousarray(pixels[y : y + height, x : x + width])
            jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            write_atomically(output / name, jpeg.tobytes())
            images.append(
                {"id": len(images) + 1, "file_name": name, "width": width, "height": height, "place": (x, y, width, height)}
            )
        for found in of_photo[image["id"]]:
            box = rle_to_box_mask(outline_to_rle(found["segmentation"], size_hw))
            for number, part in parts_of(
                box, [tile["place"] for tile in images[first:]], args.min_visible, crowd=bool(found["iscrowd"])
            ):
                tile = images[first + number]
                annotations.append(
                    part | {"id": len(annotations) + 1, "image_id": tile["id"], "category_id": found["category_id"]}
                )
    for image in images:
        del image["place"]
    return {"images": images, "annotations": annotations, "categories": truth["categories"]}


def short(file_name: str) -> str:
    """The photo's path without its suffix, as the beginning of a file's name; of a long one the end, and a number that tells it apart."""
    name = PurePosixPath(file_name).with_suffix("").as_posix().replace("/", "_")
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return f"{zlib.crc32(os.fsencode(name)):08x}_{os.fsdecode(os.fsencode(name)[9 - LONGEST_NAME :])}"


def tile_boxes(size_hw: tuple[int, int], tiles: int, overlap: float, *, whole: bool) -> list[TileBox]:
    """The tiles of a photo, row by row: squares, `tiles` of them along its long side; smaller if the photo is."""
    height, width = size_hw
    side = math.ceil(max(size_hw) / (tiles - (tiles - 1) * overlap))
    grid = Grid(tiles, overlap, side)
    boxes = [(x, y, min(side, width), min(side, height)) for y in grid.starts(height) for x in grid.starts(width)]
    return list(dict.fromkeys([(0, 0, width, height), *boxes] if whole else boxes))  # of a few pixels, tiles are alike


def parts_of(
    whole: BoxMask, boxes: Sequence[TileBox], min_visible: float, *, crowd: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What each tile shows of an object: the tile's number, and the object as COCO writes it.

    Args:
        whole: mask of the object in its photo.
        boxes: of the tiles.
        min_visible: share of the object, 0..1, below which its part is written as a crowd.
        crowd: it is one in the whole photo.
    """
    total = int(whole.mask.sum())
    for number, (x, y, width, height) in enumerate(boxes):
        left, top = max(whole.left - x, 0), max(whole.top - y, 0)  # of the part in the tile
        first_row, first_column = max(y - whole.top, 0), max(x - whole.left, 0)
        part = whole.mask[first_row : max(y + height - whole.top, 0), first_column : max(x + width - whole.left, 0)]
        area = int(part.sum())
        if not area:
            continue
        rle = box_mask_to_rle(BoxMask(left, top, part), (height, width))
        yield (
            number,
            {
                "segmentation": rle,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": area,
                "iscrowd": int(crowd or area < min_visible * total),
            },
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.tiles", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("annotations", type=Path, help=ANNOTATIONS_HELP)
    add("--images", type=Path, required=True, help="folder of their photos")
    add("--output", type=Path, required=True, help="new folder: images/ and annotations.json")
    add("--tiles", type=count, default=2, help="along the long side (default: %(default)s)")
    add("--overlap", type=fraction, default=0.2, help="of neighbouring tiles, share of a tile (default: %(default)s)")
    add("--min-visible", type=fraction, default=0.3, help="share of an object that a tile must show (default: %(default)s)")
    add("--whole", action="store_true", help="also write the whole photos")
    add("--white-level", type=count, help=WHITE_LEVEL_HELP)
    add("--strict", action="store_true", help=STRICT_HELP)
    return parser


if __name__ == "__main__":
    sys.exit(main())
