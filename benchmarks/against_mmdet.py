"""Compares every stage's output with mmdet's, for each photo: pixels, network input, boxes, scores, masks, outlines.

    python -m benchmarks.against_mmdet --images folder [--count 20] [--model NAME] [--engine openvino --precision fp32]

mmdet reads each photo as it always does (OpenCV, its own transforms, its own network and masks, float32). The engine here
is set by --engine, on mmdet's square. Each photo is also enlarged and cut to a 15:1 strip, where mmdet's masks are shifted: it swaps the
factors of width and height. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import finish
from benchmarks.mmdet_reference import MmdetReference, Reference
from benchmarks.raster import rings_to_mask
from deployments.settings import EMBEDDED_MODEL
from loadtest.load.photos import photos_from
from pipeline.images.decode import DecodeLimits, decode_image
from pipeline.images.letterbox import scale_to_fit
from pipeline.inference.create import load_engine
from pipeline.inference.engine import Engine, EngineOptions
from pipeline.masks.encode import instances_to_objects
from pipeline.masks.rle import mask_logits_to_rle, rle_to_mask
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate
from pipeline.types import DetectOptions, Instances, OutlineOptions

SCORE_THRESHOLD = 0.3
STRIP_WH = (5000, 333)
"""15:1, and of a height that rounds badly: mmdet scales its masks by 7.744 where 7.8125 is right."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one photo compares.

    Args:
        hw: height and width, pixels.
        pixels: largest difference of a decoded channel value, 0..255.
        scaled: the same of the scaled network input, from the same decoded pixels.
        found, expected: instances of ours and of mmdet's.
        box_px: largest difference of a box edge, original pixels.
        score: largest difference of a score.
        mask_iou, outline_iou: mean over instances, our exact mask and our outline (tolerance 0) against mmdet's mask.
    """

    hw: tuple[int, int]
    pixels: int
    scaled: int
    found: int
    expected: int
    box_px: float | None
    score: float | None
    mask_iou: float | None
    outline_iou: float | None


def compare(photo: bytes, engine: Engine, mmdet: MmdetReference) -> Agreement:
    """One photo through both."""
    theirs_bgr = np.asarray(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    ours_bgr, hw = decode_image(photo, DecodeLimits(), None)
    size = engine.info.input_size
    loaded = scale_to_fit(ours_bgr, hw, size)
    scaled_hw = loaded.letterbox.scaled_hw
    reference_input = cv2.resize(ours_bgr, scaled_hw[::-1], interpolation=cv2.INTER_LINEAR)
    ours = engine.detect([loaded], [DetectOptions(SCORE_THRESHOLD)])[0]
    theirs = _clipped(mmdet.predict(theirs_bgr), hw)
    count = min(len(ours), len(theirs.scores))
    return Agreement(
        hw=hw,
        pixels=_largest(ours_bgr.astype(np.int16) - theirs_bgr.astype(np.int16)),
        scaled=_largest(loaded.pixels.astype(np.int16) - reference_input.astype(np.int16)),
        found=len(ours),
        expected=len(theirs.scores),
        box_px=float(np.abs(ours.boxes[:count] - theirs.boxes[:count]).max()) if count else None,
        score=float(np.abs(ours.scores[:count] - theirs.scores[:count]).max()) if count else None,
        mask_iou=_mean_iou(_masks(ours), theirs.masks),
        outline_iou=_mean_iou(_outlines(ours), theirs.masks),
    )


def _clipped(found: Reference, hw: tuple[int, int]) -> Reference:
    """mmdet's boxes clipped to the image as ours are; its clamp is to the padded square."""
    return found._replace(boxes=np.minimum(found.boxes, np.array([hw[1], hw[0]] * 2, np.float32)))


def _masks(found: Instances) -> list[NDArray[np.bool_]]:
    return [rle_to_mask(mask_logits_to_rle(logits, found.letterbox)).astype(bool) for logits in found.mask_logits]


def _outlines(found: Instances) -> list[NDArray[np.bool_]]:
    """Each instance's rings, drawn; nothing for one that leaves none."""
    hw, options = found.letterbox.original_hw, OutlineOptions(tolerance_px=0, decimals=None, holes="rings")
    names = [""] * (int(found.labels.max(initial=0)) + 1)
    drawn = []
    for i in range(len(found)):
        one = Instances(
            found.boxes[i : i + 1],
            found.scores[i : i + 1],
            found.labels[i : i + 1],
            found.mask_logits[i : i + 1],
            found.letterbox,
        )
        rings = [ring for item in instances_to_objects(one, names, options) for ring in (*item.polygon, *(item.holes or []))]
        drawn.append(rings_to_mask([np.reshape(ring, (-1, 2)) * hw[::-1] for ring in rings], hw))
    return drawn


def _mean_iou(ours: list[NDArray[np.bool_]], theirs: NDArray[np.bool_]) -> float | None:
    """Over instances in order, where both frames overlap (mmdet's masks of a strip do not cover its width)."""
    values = []
    for mine, other in zip(ours, theirs, strict=False):
        rows, columns = min(mine.shape[0], other.shape[0]), min(mine.shape[1], other.shape[1])
        mine, other = mine[:rows, :columns], other[:rows, :columns]
        union = (mine | other).sum()
        values.append((mine & other).sum() / union if union else 1.0)
    return float(np.mean(values)) if values else None


def _largest(difference: NDArray[np.int16]) -> int:
    return int(np.abs(difference).max())


def strips(photos: list[bytes]) -> Iterator[bytes]:
    """The middle of each photo, enlarged and cut to STRIP_WH, without loss."""
    width, height = STRIP_WH
    for photo in photos:
        bgr = np.asarray(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR))
        large = cv2.resize(bgr, (width, max(height, round(bgr.shape[0] * width / bgr.shape[1]))))
        top = (large.shape[0] - height) // 2
        yield cv2.imencode(".png", large[top : top + height])[1].tobytes()


def summary(rows: list[Agreement]) -> dict[str, object]:
    """Worst differences and mean IoUs over photos; None if nothing was found."""

    def over(name: str, take: str) -> float | None:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        return float(getattr(np, take)(values)) if values else None

    return {
        "photos": len(rows),
        "instances": sum(row.found for row in rows),
        "expected_instances": sum(row.expected for row in rows),
        "photos_with_another_count": sum(row.found != row.expected for row in rows),
        "worst_pixel": over("pixels", "max"),
        "worst_scaled_pixel": over("scaled", "max"),
        "worst_box_px": over("box_px", "max"),
        "worst_score": over("score", "max"),
        "mean_mask_iou": over("mask_iou", "mean"),
        "mean_outline_iou": over("outline_iou", "mean"),
    }


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_mmdet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photos (default: crops of matplotlib's photo)")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--engine", choices=["openvino", "torch"], default="openvino")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    photos = photos_from(args.images, args.count)
    engine = load_engine(args.model, EngineOptions(args.engine, args.precision, "cpu", fitted=False))
    mmdet = MmdetReference(load_checkpoint(locate(args.model)), SCORE_THRESHOLD)
    results = {}
    for name, images in (("photos", photos), ("15:1 strips", list(strips(photos)))):
        rows = [compare(image, engine, mmdet) for image in images]
        results[name] = summary(rows) | {"each": [asdict(row) for row in rows]}
        print(name)
        for key, value in summary(rows).items():
            print(f"  {key:26} {value if not isinstance(value, float) else format(value, '.4g')}")
    finish("against_mmdet", {"engine": args.engine, "precision": args.precision, **results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
