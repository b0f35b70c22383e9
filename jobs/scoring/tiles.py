"""A photo in tiles, which makes small objects larger for the network; their results joined to one answer.

    photo at the size of N x N overlapping network inputs ─▶ cut: the whole photo, scaled down, and its tiles ─▶ network
    objects of each ─▶ join: those that an inner edge of a tile cuts are left out ─▶ NMS over all, in coordinates of the photo

An object that one tile cuts is complete in the neighbouring tile if it is smaller than the overlap; else it is found in the whole photo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from jobs.annotations.outlines import outline_to_rle
from pipeline.images.letterbox import make_letterbox, scale_to_fit
from pipeline.masks.encode import instances_to_objects
from pipeline.model.compiled_ops import greedy_nms
from pipeline.types import Instances, Letterbox, LoadedImage, OutlineOptions, SegmentedObject

NMS_IOU = 0.5
"""Boxes of one label that overlap by more are one object; the highest score stays."""
MAX_OVERLAP = 0.9
EDGE_PX = 2
"""An object counts as cut if it is this close to an inner edge of its tile."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How photos are cut.

    Args:
        tiles: along the long side; 2 or more.
        overlap: of neighbouring tiles, share of a tile, 0..0.9.
        size: side of a tile, which is the network's input, pixels.
    """

    tiles: int
    overlap: float
    size: int

    @property
    def side_px(self) -> int:
        """Long side that a photo is scaled to before it is cut."""
        return math.ceil(self.size * (self.tiles - (self.tiles - 1) * self.overlap))

    def starts(self, length_px: int) -> list[int]:
        """Where tiles begin along a side: evenly spread, the last one ends with it."""
        if length_px <= self.size:
            return [0]
        count = math.ceil((length_px - self.size) / (self.size * (1 - self.overlap)) - 1e-9) + 1
        return [round(start) for start in np.linspace(0, length_px - self.size, count)]


@dataclass(frozen=True, slots=True)
class Tiled:
    """A photo in parts, each of which goes through the network like an image.

    Args:
        letterbox: of the photo, scaled to `Grid.side_px`.
        corners_xy: top left corner of each tile, scaled pixels; the first part, the whole photo, has none.
        parts: the whole photo, then the tiles: pixels, and later what was found in them.
    """

    letterbox: Letterbox
    corners_xy: tuple[tuple[int, int], ...]
    parts: tuple[LoadedImage, ...] | tuple[Instances, ...]


def cut(image: LoadedImage, grid: Grid) -> Tiled:
    """The parts of a photo that was loaded at `grid.side_px`."""
    height, width = image.letterbox.scaled_hw
    corners = tuple((x, y) for y in grid.starts(height) for x in grid.starts(width))
    tiles = [np.ascontiguousarray(image.pixels[y : y + grid.size, x : x + grid.size]) for x, y in corners]
    letterbox = make_letterbox((height, width), grid.size)
    small = cv2.resize(image.pixels, letterbox.scaled_hw[::-1], interpolation=cv2.INTER_AREA)
    whole = LoadedImage(np.asarray(small, np.uint8), letterbox)
    return Tiled(image.letterbox, corners, (whole, *(scale_to_fit(tile, tile.shape[:2], grid.size) for tile in tiles)))


def join(photo: Tiled, classes: Sequence[str], options: OutlineOptions) -> list[SegmentedObject]:
    """What was found in all parts as one answer, highest score first; holes are filled, and `rle` is of the outline.

    Args:
        photo: whose parts are Instances.
        classes: names by label index.
        options: of outlines.
    """
    as_polygons = replace(options, mask_format="polygon", holes="drop", decimals=None)
    found: list[SegmentedObject] = []
    for corner, part in zip((None, *photo.corners_xy), photo.parts, strict=True):
        if not isinstance(part, Instances):
            raise TypeError(f"parts: expected Instances, got {type(part).__name__}")
        objects = instances_to_objects(part, classes, as_polygons)
        if corner is not None:
            tile_hw, full_hw = part.letterbox.original_hw, photo.letterbox.scaled_hw
            objects = [_moved(item, corner, tile_hw, full_hw) for item in objects if not _is_cut(item, corner, tile_hw, full_hw)]
        found += objects
    kept = without_doubles(found)
    if options.mask_format == "rle":
        return [_as_rle(item, photo.letterbox.original_hw) for item in kept]
    return kept if options.decimals is None else [_rounded(item, options.decimals) for item in kept]


def _is_cut(item: SegmentedObject, corner_xy: tuple[int, int], tile_hw: tuple[int, int], full_hw: tuple[int, int]) -> bool:
    """Whether the box touches an edge of the tile that is none of the photo."""
    (x, y), (height, width), (full_height, full_width) = corner_xy, tile_hw, full_hw
    left, top, right, bottom = item.box
    return (
        (x > 0 and left * width < EDGE_PX)
        or (y > 0 and top * height < EDGE_PX)
        or (x + width < full_width and right * width > width - EDGE_PX)
        or (y + height < full_height and bottom * height > height - EDGE_PX)
    )


def _moved(
    item: SegmentedObject, corner_xy: tuple[int, int], tile_hw: tuple[int, int], full_hw: tuple[int, int]
) -> SegmentedObject:
    """From fractions of a tile to fractions of the photo."""
    scale, full = np.array(tile_hw[::-1], float), np.array(full_hw[::-1], float)

    def moved(flat: Sequence[float]) -> list[float]:
        points: list[float] = ((np.reshape(flat, (-1, 2)) * scale + corner_xy) / full).ravel().tolist()
        return points

    left, top, right, bottom = moved(item.box)
    return replace(item, box=(left, top, right, bottom), polygon=[moved(ring) for ring in item.polygon])


def without_doubles(objects: Sequence[SegmentedObject]) -> list[SegmentedObject]:
    """Non-maximum suppression by box within each label; highest score first."""
    kept: list[SegmentedObject] = []
    for label in dict.fromkeys(item.label for item in objects):
        own = [item for item in objects if item.label == label]
        boxes, scores = torch.tensor([item.box for item in own]), torch.tensor([item.score for item in own])
        kept += [own[index] for index in greedy_nms(boxes, scores, NMS_IOU).tolist()]
    return sorted(kept, key=lambda item: -item.score)


def _rounded(item: SegmentedObject, decimals: int) -> SegmentedObject:
    left, top, right, bottom = np.round(item.box, decimals).tolist()
    return replace(item, box=(left, top, right, bottom), polygon=[np.round(ring, decimals).tolist() for ring in item.polygon])


def _as_rle(item: SegmentedObject, size_hw: tuple[int, int]) -> SegmentedObject:
    scale = np.array(size_hw[::-1])
    rle = outline_to_rle([(np.reshape(ring, (-1, 2)) * scale).ravel().tolist() for ring in item.polygon], size_hw)
    return replace(item, polygon=[], rle=rle)
