"""The result for one photo, with conversions to other formats."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from rtmdet_ins_client.photo import Buffer
from rtmdet_ins_client.upright import as_seen

if TYPE_CHECKING:
    import supervision

COLOURS = ("#2f9bff", "#e6f24a", "#c322e8", "#33e88f", "#f2744a", "#1d1dff", "#7be81f", "#f23fb0")


@dataclass(frozen=True, slots=True)
class Found:
    """One object. Coordinates are fractions of the photo's width and height, 0..1.

    Args:
        label: class name.
        score: 0..1.
        box: x1, y1, x2, y2.
        polygon: outer rings, largest first; each x1 y1 x2 y2 …
        holes: rings of holes, with `holes="rings"`.
        rle: COCO RLE at the photo's size, with `mask_format="rle"`.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    polygon: list[list[float]]
    holes: list[list[float]]
    rle: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The objects of one photo.

    Args:
        objects: highest score first.
        size: width and height of the photo as the service sees it, pixels; (0, 0) if it is not known, as of a URL.
        error: the error, if the photo could not be scored (`Client.score_many`); then `objects` is empty.
        turned: whether the service turned the photo by its EXIF orientation; with `image_loader.exif_orientation: false` it does not.
    """

    objects: list[Found]
    size: tuple[int, int]
    error: Exception | None = None
    turned: bool = True

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any], size: tuple[int, int], turned: bool = True) -> Result:
        """Parse the service's object for one image, `{"boxes": […]}`."""
        return cls([_found(item) for item in answer["boxes"]], size, turned=turned)

    def to_coco(self, image_id: int, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
        """As COCO results: bbox x y width height and polygons in pixels (or RLE), score, category. COCO's polygons have no holes.

        Args:
            category_ids: for each label; objects with other labels are left out.
        Raises:
            ValueError: `size` is not known.
        """
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[item.label],
                "bbox": _xywh(self._pixels(item.box)),
                "segmentation": item.rle or [self._pixels(ring) for ring in item.polygon],
                "score": item.score,
            }
            for item in self.objects
            if item.label in category_ids
        ]

    def to_supervision(self, class_ids: Mapping[str, int] | None = None) -> supervision.Detections:
        """As `supervision.Detections`, with masks; class names are in `data["class_name"]`.

        Args:
            class_ids: for each label; objects with other labels are left out. None numbers the labels of this photo, so the ids of two
                photos do not compare.
        """
        import numpy as np
        import supervision as sv

        if class_ids is None:
            class_ids = {name: index for index, name in enumerate(sorted({item.label for item in self.objects}))}
        objects = [item for item in self.objects if item.label in class_ids]
        data = {"class_name": np.array([item.label for item in objects], str)}
        if not objects:
            empty = sv.Detections.empty()
            empty.data = data
            return empty
        return sv.Detections(
            xyxy=np.array([self._pixels(item.box) for item in objects], np.float32),
            mask=np.array([np.asarray(self._mask(item), bool) for item in objects]),
            confidence=np.array([item.score for item in objects], np.float32),
            class_id=np.array([class_ids[item.label] for item in objects]),
            data=data,
        )

    def draw(self, photo: str | Path | Buffer | Image.Image) -> Image.Image:
        """A copy of the photo with outlines, labels and scores. (The service draws, too: `Accept: image/png`.)"""
        file = io.BytesIO(photo) if isinstance(photo, Buffer) else photo
        picture = as_seen(file if isinstance(file, Image.Image) else Image.open(file), self.turned).convert("RGB")
        sized = Result(self.objects, picture.size)
        for index, item in reversed(list(enumerate(self.objects))):
            colour = COLOURS[index % len(COLOURS)]
            tint = Image.new("RGB", picture.size, colour)
            picture = Image.composite(Image.blend(picture, tint, 0.4), picture, sized._mask(item))
            _outline(picture, sized, item, colour)
        return picture

    def _pixels(self, fractions: list[float] | tuple[float, ...]) -> list[float]:
        width, height = self.size
        if not width:
            raise ValueError(
                "The size of the photo is not known (a URL, or a format that Pillow cannot read here): set Result.size."
            )
        return [value * (height if index % 2 else width) for index, value in enumerate(fractions)]

    def _mask(self, item: Found) -> Image.Image:
        """Mask of one object at the photo's size: white inside, black outside and in holes."""
        if item.rle:
            return _rle_to_mask(item.rle).resize(self.size, Image.Resampling.NEAREST)
        width, height = self.size
        mask = bytearray(width * height)
        for rings, value in ((item.polygon, b"\xff"), (item.holes, b"\0")):
            for ring in rings:
                for start, end in _spans(self._pixels(ring), width, height):
                    mask[start:end] = value * (end - start)
        return Image.frombytes("L", self.size, bytes(mask))


def _outline(picture: Image.Image, result: Result, item: Found, colour: str) -> None:
    draw = ImageDraw.Draw(picture)
    width = max(round(min(picture.size) / 240), 2)
    for ring in (*item.polygon, *item.holes):
        points = result._pixels(ring)
        draw.line([*points, *points[:2]], fill=colour, width=width, joint="curve")
    left, top, *_ = result._pixels(item.box)
    text = f"{item.label} {item.score:.0%}"
    corner = (left, max(top - 14, 0))
    draw.rectangle(draw.textbbox(corner, text), fill=colour)
    draw.text(corner, text, fill="black")


def _spans(ring: list[float], width: int, height: int) -> Iterator[tuple[int, int]]:
    """The pixels whose centres are inside a ring, as ranges of row * width + column. (Pillow's `polygon` also fills those that the edge
    touches: an object of 8 pixels grows by a quarter.)"""
    crossings: dict[int, list[float]] = {}
    points = list(zip(ring[::2], ring[1::2], strict=True))
    for one, other in zip(points, points[1:] + points[:1], strict=True):
        (x1, y1), (x2, y2) = sorted((one, other), key=itemgetter(1))
        for row in range(max(ceil(y1 - 0.5), 0), min(ceil(y2 - 0.5), height)):
            crossings.setdefault(row, []).append(x1 + (row + 0.5 - y1) * (x2 - x1) / (y2 - y1))
    for row, xs in crossings.items():
        columns = [min(max(ceil(x - 0.5), 0), width) for x in sorted(xs)]
        for left, right in zip(columns[::2], columns[1::2], strict=True):
            yield row * width + left, row * width + right


def _rle_to_mask(rle: Mapping[str, Any]) -> Image.Image:
    """Decode COCO's compressed RLE, whose pixels go down the columns, to an image: white inside."""
    height, width = rle["size"]
    columns = b"".join((b"\0", b"\xff")[index % 2] * run for index, run in enumerate(_runs(rle["counts"])))
    return Image.frombytes("L", (height, width), columns).transpose(Image.Transpose.TRANSPOSE)


def _runs(counts: str) -> list[int]:
    """Lengths of the runs, outside first. Source: pycocotools, `rleFrString`."""
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode():
        bits = byte - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _found(item: Mapping[str, Any]) -> Found:
    box = item["box"]
    corners = (box["topX"], box["topY"], box["bottomX"], box["bottomY"])
    return Found(item["label"], item["score"], corners, item["polygon"], item.get("holes") or [], item.get("rle"))


def _xywh(xyxy: list[float]) -> list[float]:
    left, top, right, bottom = xyxy
    return [left, top, right - left, bottom - top]
