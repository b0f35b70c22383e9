"""Serving, training, evaluation and pictures decode photos to the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from mmdet.registry import TRANSFORMS

from deployments.settings import ImageLoaderSettings
from jobs import batch_ray, compare, evaluate, photos, pictures, tiles
from jobs.evaluation import predictions
from jobs.photos import PhotoError
from jobs.score_by_handle import read_image
from jobs.training.data import augment
from jobs.training.options import parser_for
from jobs.training.settings import FinetuneSettings
from pipeline.images.decode import DecodeLimits, decode_image
from pipeline.images.load import load_image
from pipeline.model.spec import nano_spec
from tests.support.odd_images import HEIGHT, WIDTH, odd_images

ODD = odd_images()


@pytest.mark.parametrize("name", ODD)
def test_all_readers_see_the_same(name, tmp_path):
    """As `decode_image`."""
    odd = ODD[name]
    path = tmp_path / f"odd{odd.suffix}"
    path.write_bytes(odd.data)
    bgr, size_hw = decode_image(odd.data, DecodeLimits())
    readers = {
        "served": load_image(odd.data, DecodeLimits(), WIDTH).pixels,  # not scaled: its long side is the network's input
        "trained": augment.LoadImageOnce()({"img_path": str(path)})["img"],
        "drawn": np.asarray(photos.read_photo_within(path, WIDTH))[..., ::-1],
    }
    for reader, pixels in readers.items():
        np.testing.assert_array_equal(pixels, bgr, err_msg=reader)
    assert size_hw == (HEIGHT, WIDTH)
    assert photos.upright_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "content", [b"", b"no photo", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "JPEG", "PNG"]
)
def test_what_is_not_a_photo_is_named(content, tmp_path):
    """By its size and by its pixels; so is a file that is not there."""
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (photos.read_photo, photos.upright_size):
        with pytest.raises(PhotoError, match=r"a\.jpg: not a readable photo \(The "):
            read(path)
        with pytest.raises(PhotoError, match=r"b\.jpg: not a readable photo \(No such file"):
            read(tmp_path / "b.jpg")


def test_photos_larger_than_the_services_limits(tmp_path):
    """They are the user's own: a 42-megapixel scan of 126 MB. What is too large is reported without a setting of the service."""
    path = tmp_path / "scan.tif"
    Image.new("RGB", (7000, 6000), (10, 200, 30)).save(path)
    assert photos.read_photo(path).shape == (6000, 7000, 3)
    assert photos.upright_size(path) == (7000, 6000)
    assert read_image(str(path), as_pixels=True).shape == (6000, 7000, 3)
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
    for read in (photos.read_photo, photos.upright_size):
        with pytest.raises(PhotoError, match=r"scan\.tif: not a readable photo \(The image is larger than 1000 MB\)$"):
            read(path)


@pytest.mark.parametrize(("white_level", "brightest"), [(None, 249), (4095, 249), (65535, 16)])
def test_white_level_is_the_services(white_level, brightest, tmp_path):
    """A frame of 12 bits, as serving, training, measuring and drawing read it."""
    path = tmp_path / "frame.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 4000, np.uint16)).save(path)
    for pixels in (
        load_image(path.read_bytes(), DecodeLimits(white_level=white_level), WIDTH).pixels,
        augment.LoadImageOnce(white_level=white_level)({"img_path": str(path)})["img"],
        TRANSFORMS.build(predictions.image_transforms(nano_spec(input_size=64), white_level)[0])({"img_path": str(path)})["img"],
        np.asarray(photos.read_photo_within(path, WIDTH, white_level)),
    ):
        assert pixels.max() == brightest


@pytest.mark.parametrize(
    "parser",
    [
        *(job._parser for job in (evaluate, pictures, batch_ray, tiles, compare)),
        lambda: parser_for(FinetuneSettings, "jobs.finetune", ""),
    ],
    ids=["evaluate", "pictures", "batch_ray", "tiles", "compare", "finetune"],
)
def test_every_job_has_the_services_white_level(parser):
    """Declared once: the option says what the setting says."""
    said = " ".join(parser().format_help().split())
    meaning = ImageLoaderSettings.model_fields["white_level"].description.replace("null", "Not given")
    assert "".join(meaning.split()) in said.replace(" ", "")
