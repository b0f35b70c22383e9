"""Copies of photos are found in another size, format or quality; other pictures are not taken for copies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs.photo_copies import SIDE, originals, thumbnails


def picture(seed, size=(320, 240)):
    """Coloured ellipses on a gradient."""
    random = np.random.default_rng(seed)
    drawn = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(drawn)
    for _ in range(12):
        x, y, width, height = random.uniform(0, 0.7, 4) * (*size, *size)
        draw.ellipse([x, y, x + width, y + height], fill=tuple(random.integers(0, 256, 3).tolist()))
    return drawn


@pytest.mark.parametrize(
    ("name", "size", "quality"),
    [("b.jpg", (320, 240), 40), ("b.jpg", (160, 120), 80), ("b.webp", (480, 360), 80), ("b.png", (107, 80), None)],
    ids=["quality", "half", "larger", "a third"],
)
def test_copies_are_found(tmp_path, name, size, quality):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "other.png")
    picture(0).resize(size).save(tmp_path / name, **({"quality": quality} if quality else {}))
    found = thumbnails([tmp_path / "a.png", tmp_path / "other.png", tmp_path / name])
    assert originals(found.bgr).tolist() == [-1, -1, 0]
    assert originals(found.bgr[2:], found.bgr[:2]).tolist() == [0]


def test_a_frame_in_which_something_moved_is_no_copy(tmp_path):
    frame = picture(0)
    frame.save(tmp_path / "a.png")
    ImageDraw.Draw(frame).rectangle([100, 100, 130, 140], fill=(255, 0, 255))
    frame.save(tmp_path / "b.png")
    assert originals(thumbnails([tmp_path / "a.png", tmp_path / "b.png"]).bgr).tolist() == [-1, -1]


def test_rotated_photos_and_faults(tmp_path):
    """A photo that is turned upright by its tag is a copy of one that was stored upright."""
    exif = picture(0).getexif()
    exif[0x0112] = 6
    picture(0).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    picture(0).save(tmp_path / "upright.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "upright.jpg").read_bytes()[:3000])
    found = thumbnails([tmp_path / name for name in ("turned.jpg", "broken.jpg", "upright.jpg")])
    assert not found.changed_unseen.any()
    assert originals(found.bgr).tolist() == [-1, -1, 0]
    (fault,) = found.faults
    assert "broken.jpg: not a readable photo" in fault


def test_blank_photos_are_no_copies():
    assert originals(np.full((3, SIDE, SIDE, 3), 255, np.uint8)).tolist() == [-1, -1, -1]
    assert originals(np.zeros((0, SIDE, SIDE, 3), np.uint8)).tolist() == []


def test_many_photos():
    """More than a block, and the first of several copies."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, SIDE, SIDE, 3)).astype(np.uint8)
    noise[[700, 1100]] = noise[3]
    found = originals(noise)
    assert np.flatnonzero(found >= 0).tolist() == [700, 1100]
    assert found[[700, 1100]].tolist() == [3, 3]
