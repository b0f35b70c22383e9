"""Photos in tiles: every pixel is in one, objects come back where they are, once."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.scoring.tiles import Grid, Tiled, cut, join, without_doubles
from pipeline.images.letterbox import scale_to_fit
from pipeline.types import Instances, OutlineOptions, SegmentedObject
from tests.support.mask_examples import decode_rle

GRID = Grid(tiles=2, overlap=0.25, size=320)


@given(st.integers(1, 5), st.floats(0, 0.9), st.integers(1, 4000))
def test_tiles_cover_a_side(tiles, overlap, length):
    """From its first pixel to its last, neighbours overlap by what was asked or more, and there are as many as asked."""
    grid = Grid(tiles, overlap, 320)
    starts = grid.starts(length)
    assert starts[0] == 0
    assert starts[-1] == max(length - 320, 0)
    assert all(0 < after - before <= 320 * (1 - overlap) + 1 for before, after in itertools.pairwise(starts))
    assert len(grid.starts(grid.side_px)) in (tiles, tiles + 1)


def photo_with(*boxes, size_hw=(280, 560)):
    """A photo of twice this size at the grid's size, white rectangles on black; boxes in its scaled pixels."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    return scale_to_fit(np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1), (2 * size_hw[0], 2 * size_hw[1]), GRID.side_px)


def seen(part):
    """Each white blob of a part as an instance; a stand-in for the network."""
    height, width = part.letterbox.scaled_hw
    count, labels = cv2.connectedComponents((part.pixels[..., 0] > 127).astype(np.uint8))
    grid_hw, boxes, logits = part.letterbox.mask_grid_hw, [], []
    for number in range(1, count):
        rows, columns = np.nonzero(labels == number)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        canvas = np.full((grid_hw[0] * 8, grid_hw[1] * 8), -1.0, np.float32)
        canvas[:height, :width][labels == number] = 1
        logits.append(canvas.reshape(grid_hw[0], 8, grid_hw[1], 8).mean((1, 3)))
    scale = np.array(part.letterbox.to_original_xy * 2)
    return Instances(
        (np.reshape(boxes, (-1, 4)) * scale).astype(np.float32),
        np.full(len(boxes), 0.9, np.float32),
        np.zeros(len(boxes), np.int64),
        np.reshape(logits, (-1, *grid_hw)).astype(np.float16),
        part.letterbox,
    )


def found_in(photo, **options):
    tiled = cut(photo, GRID)
    return join(Tiled(tiled.letterbox, tiled.corners_xy, tuple(map(seen, tiled.parts))), ("thing",), OutlineOptions(**options))


def test_parts_of_a_photo():
    """The whole, scaled down, then the tiles, pixel for pixel."""
    photo = photo_with((0, 0, 40, 40))
    tiled = cut(photo, GRID)
    assert tiled.corners_xy == ((0, 0), (240, 0))
    assert [part.pixels.shape for part in tiled.parts] == [(160, 320, 3), (280, 320, 3), (280, 320, 3)]
    assert (tiled.parts[2].pixels == photo.pixels[:, 240:]).all()
    assert tiled.letterbox.original_hw == (560, 1120)


@pytest.mark.parametrize(
    "box",
    [(40, 40, 120, 120), (440, 160, 520, 240), (250, 80, 310, 200), (40, 40, 520, 240), (0, 0, 80, 80)],
    ids=["first tile", "second tile", "both", "larger than a tile", "at the photo's edge"],
)
@pytest.mark.parametrize("turned", [False, True], ids=["landscape", "portrait"])
def test_objects_come_back_where_they_are(box, turned):
    """Once each, in fractions of the photo."""
    box, size_hw = ([*box[1::-1], *box[:1:-1]], (560, 280)) if turned else (box, (280, 560))
    (item,) = found_in(photo_with(box, size_hw=size_hw))
    assert np.allclose(item.box, np.array(box) / (size_hw[::-1] * 2), atol=0.01)
    ring = np.reshape(item.polygon[0], (-1, 2))
    assert np.allclose([*ring.min(0), *ring.max(0)], item.box, atol=0.04)
    (exact,) = found_in(photo_with(box, size_hw=size_hw), mask_format="rle")
    assert exact.rle["size"] == [2 * side for side in size_hw]
    area = decode_rle(exact.rle).mean()
    assert area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]) / (560 * 280), rel=0.25)


def test_doubles():
    """Of those that overlap the best stays; another label, or little overlap, is another object."""
    boxes = [
        ((0, 0, 0.5, 0.5), "a", 0.5),
        ((0, 0, 0.5, 0.45), "a", 0.9),
        ((0, 0, 0.5, 0.5), "b", 0.4),
        ((0.4, 0, 0.9, 0.5), "a", 0.3),
    ]
    kept = without_doubles([SegmentedObject(box, label, score, []) for box, label, score in boxes])
    assert [(item.label, item.score) for item in kept] == [("a", 0.9), ("b", 0.4), ("a", 0.3)]
