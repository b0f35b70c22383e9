"""Measures IoU with the full-size mask against JSON bytes of polygons, by tolerance.

    python -m benchmarks.outline_curve [--logits FILE.npz | --coco FOLDER] [--scale 1] [--plot FILE.png]

Ceiling: IoU at tolerance 0, every vertex kept. Masks come from an npz (arrays `mask_logits_<i>` (N, h, w) float16, `original_hw_<i>` and
`scaled_hw_<i>` for each image i, `size`), or from COCO ground truth made into logits. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.measure import finish, table
from benchmarks.raster import rings_to_mask
from jobs.command_line import cli_errors
from pipeline.masks.encode import instances_to_objects, objects_to_json
from pipeline.masks.rle import mask_logits_to_rle, rle_to_mask
from pipeline.types import MASK_STRIDE_PX, Instances, Letterbox, OutlineOptions

TOLERANCES_PX = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DECIMALS: tuple[int | None, ...] = (3, 4, 5, 6, None)
COCO_PERSON_VAL = Path(__file__).resolve().parents[2] / "shared/datasets/coco_person/val.json"
_SMALLEST_MASK_PX = 3
_INPUT_PX = 640


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One setting: mean and worst IoU over objects, mean points and JSON bytes per object."""

    tolerance_px: float
    decimals: int | None
    iou: float
    iou_worst: float
    points: float
    bytes: float


def read_npz(path: Path) -> Iterator[tuple[NDArray[np.float16], Letterbox]]:
    """Mask logits (N, h, w) and geometry of each image in a saved file."""
    with np.load(path) as data:
        for i in itertools.takewhile(lambda i: f"mask_logits_{i}" in data, itertools.count()):
            (height, width), (rows, columns) = data[f"original_hw_{i}"].tolist(), data[f"scaled_hw_{i}"].tolist()
            yield data[f"mask_logits_{i}"], Letterbox((height, width), (rows, columns), int(data["size"]))


def read_coco(path: Path, scale: float) -> Iterator[tuple[NDArray[np.float16], Letterbox]]:
    """Ground-truth masks of each image, as the logits a perfect network would give; no photo is read.

    Args:
        path: COCO JSON.
        scale: pretend that the photos are this many times larger.
    """
    coco = json.loads(path.read_text())
    for image in coco["images"]:
        shapes = [a for a in coco["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        if shapes:
            height, width = image["height"], image["width"]
            factor = _INPUT_PX / max(height, width)
            scaled = int(height * factor + 0.5), int(width * factor + 0.5)
            letterbox = Letterbox((round(height * scale), round(width * scale)), scaled, _INPUT_PX)
            yield np.stack([_to_logits(_rasterise(a, height, width), letterbox) for a in shapes]), letterbox


def measure(images: Sequence[tuple[NDArray[np.float16], Letterbox]], options: OutlineOptions) -> CurvePoint:
    """Outline every mask of three pixels or more and hold it against the full-size mask."""
    ious, points, sizes = [], [], []
    for logits, letterbox in images:
        masks = (rle_to_mask(mask_logits_to_rle(one, letterbox)) > 0 for one in logits)
        for one, mask in zip(logits, masks, strict=True):
            if mask.sum() < _SMALLEST_MASK_PX:
                continue
            objects = instances_to_objects(_instance(one, letterbox), ["person"], options)
            rings = [ring for item in objects for ring in (*item.polygon, *(item.holes or []))]
            drawn = rings_to_mask(
                [np.reshape(ring, (-1, 2)) * letterbox.original_hw[::-1] for ring in rings], letterbox.original_hw
            )
            ious.append(np.count_nonzero(drawn & mask) / np.count_nonzero(drawn | mask))
            points.append(sum(len(ring) / 2 - 1 for ring in rings))  # without the repeated first points
            sizes.append(len(objects_to_json(objects)))
    means = [round(float(np.mean(values)), 4) for values in (ious, points, sizes)]
    return CurvePoint(options.tolerance_px, options.decimals, means[0], round(min(ious), 4), means[1], means[2])


def _instance(logits: NDArray[np.float16], letterbox: Letterbox) -> Instances:
    height, width = letterbox.original_hw
    box, score = np.array([[0, 0, width, height]], np.float32), np.array([0.9], np.float32)
    return Instances(box, score, np.zeros(1, np.int64), logits[None], letterbox)


def _rasterise(annotation: dict[str, Any], height: int, width: int) -> NDArray[np.uint8]:
    """One annotation's mask, by cv2 (pycocotools' decode warns under numpy 2)."""
    if isinstance(annotation["segmentation"], dict):
        runs = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        return np.asarray(coco_mask.decode([runs]))[..., 0]
    rings = [np.round(np.reshape(ring, (-1, 2)) * 16 - 8).astype(np.int32) for ring in annotation["segmentation"]]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, rings, (1,), shift=4)
    return mask


def _to_logits(mask: NDArray[np.uint8], letterbox: Letterbox) -> NDArray[np.float16]:
    """Share of the mask around each cell's centre, blurred by half a cell, as a logit."""
    rows, columns = letterbox.scaled_hw
    grid = tuple(n * MASK_STRIDE_PX for n in letterbox.mask_grid_hw)
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    share = cv2.copyMakeBorder(share, 0, grid[0] - rows, 0, grid[1] - columns, cv2.BORDER_REPLICATE)
    share = cv2.GaussianBlur(share, (0, 0), MASK_STRIDE_PX / 2)
    middle = slice(MASK_STRIDE_PX // 2 - 1, None, MASK_STRIDE_PX), slice(MASK_STRIDE_PX // 2, None, MASK_STRIDE_PX)
    cells = sum(share[a, b] for a in middle for b in middle) / 4
    share = np.clip(cells, 0.002, 0.998)
    logits: NDArray[np.float16] = np.log(share / (1 - share)).astype(np.float16)
    return logits


def as_table(points: Sequence[CurvePoint]) -> str:
    """For people."""
    rows = [[f"{p.tolerance_px:g}", str(p.decimals), *map(str, (p.iou, p.iou_worst, p.points, p.bytes))] for p in points]
    return table(["tolerance px", "decimals", "IoU", "worst", "points", "bytes"], rows)


def _plot(points: Sequence[CurvePoint], path: Path) -> None:
    import matplotlib  # a development tool: only if a plot is asked for

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot([p.bytes for p in points], [p.iou for p in points], "o-", color="#1673b1")
    for p in points:
        axes.annotate(f"{p.tolerance_px:g} px", (p.bytes, p.iou), textcoords="offset points", xytext=(6, -12), fontsize=9)
    axes.axhline(0.99, color="0.6", linestyle="--", linewidth=1)
    axes.set(
        xscale="log",
        xlabel="JSON bytes per object",
        ylabel="mean IoU with the full-size mask",
        title="What the outline's bytes buy",
    )
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)


@cli_errors("benchmarks.outline_curve")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the curve and print it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", type=Path, help="npz of saved mask logits")
    parser.add_argument("--coco", type=Path, default=COCO_PERSON_VAL, help="COCO JSON whose masks are made into logits")
    parser.add_argument("--scale", type=float, default=1.0, help="pretend that the photos are this many times larger")
    parser.add_argument("--every", type=int, default=3, help="use every n-th image")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args(argv)
    source = read_npz(args.logits) if args.logits else read_coco(args.coco, args.scale)
    images = list(itertools.islice(source, 0, None, args.every))
    print(f"{sum(len(logits) for logits, _ in images)} masks of {len(images)} images; ceiling is tolerance 0 with all decimals")
    by_tolerance = [measure(images, OutlineOptions(tolerance_px=t, holes="rings")) for t in TOLERANCES_PX]
    by_decimals = [measure(images, OutlineOptions(decimals=d, holes="rings")) for d in DECIMALS]
    print(as_table([*by_tolerance, *by_decimals]))
    if args.plot:
        _plot(by_tolerance, args.plot)
    finish("outline_curve", {"by_tolerance": [asdict(p) for p in by_tolerance], "by_decimals": [asdict(p) for p in by_decimals]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
