"""Letterboxing, bit for bit as mmdet."""

import mmcv
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShapeError
from pipeline.images.letterbox import PAD_VALUE, fitted_input, for_size, make_letterbox, pad_batch, scale_to_fit

SIZES_HW = [(480, 640), (640, 480), (333, 500), (1, 1), (640, 640), (639, 641), (375, 1280)]
SIZES_HW += [(64, 640), (333, 5000), (1080, 1920), (7, 3)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mmdet_letterbox(bgr: np.ndarray, size: int) -> np.ndarray:
    """What mmdet's Resize(keep_ratio) and Pad(size, 114) compute, by the same mmcv calls."""
    scaled = mmcv.imrescale(bgr, (size, size), interpolation="bilinear", backend="cv2")
    return mmcv.impad(scaled, shape=(size, size), pad_val=(PAD_VALUE,) * 3)


@pytest.mark.parametrize("size", [320, 640])
@pytest.mark.parametrize("hw", SIZES_HW, ids=str)
def test_equals_mmdet(hw: tuple[int, int], size: int) -> None:
    """The padded square is identical to mmdet's, up and down, wide and tall."""
    bgr = noise(*hw)
    squares = pad_batch([scale_to_fit(bgr, hw, size)], size)
    np.testing.assert_array_equal(squares[0], mmdet_letterbox(bgr, size))


def test_equals_mmdet_transforms() -> None:
    """The same through mmdet's registered transforms, where mmdet can be imported."""
    ops = pytest.importorskip("pipeline.model.compiled_ops", reason="makes mmdet importable without compiled ops")
    ops.ensure_mmcv_ops()
    from mmdet.datasets.transforms import Pad, Resize

    for hw in SIZES_HW:
        results = {"img": noise(*hw), "img_shape": hw}
        results = Pad(size=(640, 640), pad_val={"img": (114, 114, 114)})(Resize(scale=(640, 640), keep_ratio=True)(results))
        np.testing.assert_array_equal(pad_batch([scale_to_fit(noise(*hw), hw, 640)], 640)[0], results["img"])


@settings(max_examples=300)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(32, 1280))
def test_fit_rounds_as_mmcv(height: int, width: int, size: int) -> None:
    """Any size gives mmcv's scaled size, except that nothing rounds to zero."""
    letterbox = make_letterbox((height, width), size)
    expected_w, expected_h = mmcv.rescale_size((width, height), (size, size))
    assert letterbox.scaled_hw == (max(1, expected_h), max(1, expected_w))
    assert letterbox.original_hw == (height, width)


@pytest.mark.parametrize("hw", [(1, 5000), (5000, 1), (3, 60_000)], ids=str)
def test_extremely_thin(hw: tuple[int, int]) -> None:
    """Images that mmcv would scale to nothing keep one row or column."""
    image = scale_to_fit(noise(*hw), hw, 640)
    assert image.pixels.shape[:2] == image.letterbox.scaled_hw
    assert min(image.letterbox.scaled_hw) == 1


@settings(max_examples=300)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([64, 96, 320, 640, 1280]))
def test_fitted_inputs_hold_their_image(height: int, width: int, size: int) -> None:
    """With a mask cell's strip of padding, unless it is the square; in whole strides."""
    letterbox = make_letterbox((height, width), size)
    input_hw = fitted_input(letterbox.scaled_hw, size)
    assert max(input_hw) == size
    assert all(side % 32 == 0 for side in input_hw)
    assert all(side >= scaled for side, scaled in zip(input_hw, letterbox.scaled_hw, strict=True))
    assert min(input_hw) >= min(letterbox.scaled_hw) + 8 or input_hw == (size, size)
    assert pad_batch([], size, out=np.empty((1, *input_hw, 3), np.uint8)).shape == (0, *input_hw, 3)


@pytest.mark.parametrize(
    ("hw", "input_hw"),
    [
        ((480, 640), (512, 640)),
        ((3000, 4000), (512, 640)),
        ((3024, 2016), (640, 512)),
        ((1080, 1920), (384, 640)),
        ((1920, 1080), (640, 384)),
        ((100, 1000), (384, 640)),
        ((640, 640), (640, 640)),
        ((1000, 1250), (640, 640)),
    ],
    ids=str,
)
def test_fitted_inputs_of_usual_photos(hw: tuple[int, int], input_hw: tuple[int, int]) -> None:
    """One of five."""
    assert fitted_input(make_letterbox(hw, 640).scaled_hw, 640) == input_hw


def test_pad_batch_fills_a_fitted_input() -> None:
    """The same pixels as the square's top left; what does not fit is told."""
    image = scale_to_fit(noise(480, 640), (480, 640), 640)
    padded = pad_batch([image], 640, out=np.full((1, 512, 640, 3), 7, np.uint8))
    np.testing.assert_array_equal(padded[0], pad_batch([image], 640)[0, :512])
    with pytest.raises(ShapeError, match="expected room for 480 x 640 pixels, got 640 x 384"):
        pad_batch([image], 640, out=np.empty((1, 640, 384, 3), np.uint8))


def test_pad_batch_reuses_its_buffer() -> None:
    """Writing into a dirty, larger buffer gives the same squares, without a new array."""
    images = [scale_to_fit(noise(*hw), hw, 320) for hw in ((480, 640), (640, 480), (320, 320))]
    buffer = np.full((5, 320, 320, 3), 7, np.uint8)
    squares = pad_batch(images, 320, out=buffer)
    assert np.shares_memory(squares, buffer)
    assert squares.shape == (3, 320, 320, 3)
    np.testing.assert_array_equal(squares, pad_batch(images, 320))
    assert (buffer[3:] == 7).all()
    assert pad_batch([], 320).shape == (0, 320, 320, 3)


def test_wrong_shapes_are_reported() -> None:
    """Another size, a small buffer, another dtype: ShapeError with expected and actual."""
    image = scale_to_fit(noise(48, 64), (48, 64), 320)
    with pytest.raises(ShapeError, match="expected letterbox size 640, got 320"):
        pad_batch([image], 640)
    with pytest.raises(ShapeError, match="expected room for 2 images, got 1"):
        pad_batch([image, image], 320, out=np.empty((1, 320, 320, 3), np.uint8))
    with pytest.raises(ShapeError, match="uint8"):
        pad_batch([image], 320, out=np.empty((1, 320, 320, 3), np.float32))
    with pytest.raises(ShapeError, match="bgr"):
        scale_to_fit(np.zeros((4, 4), np.uint8), (4, 4), 320)


@pytest.mark.parametrize("hw", [(2048, 3072), (2051, 3069), (1537, 5121), (5121, 1537)], ids=str)
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding_keeps_places(hw: tuple[int, int], reduction: int) -> None:
    """A ramp decoded at 1/s gives the full image's scaled size, and every value at its place, also for odd sizes."""
    rows, columns = (np.arange(-(-n // reduction)) * reduction + (reduction - 1) / 2 for n in hw)
    ramp = np.stack(np.broadcast_arrays(rows[:, None] / hw[0], columns[None] / hw[1], 0.5), axis=-1)
    image = scale_to_fit(np.rint(ramp * 200).astype(np.uint8), hw, 320)
    assert image.letterbox.scaled_hw == make_letterbox(hw, 320).scaled_hw
    scaled_h, scaled_w = image.letterbox.scaled_hw
    expected_y = (np.arange(scaled_h) + 0.5) / scaled_h * 200
    expected_x = (np.arange(scaled_w) + 0.5) / scaled_w * 200
    assert np.abs(image.pixels[:, scaled_w // 2, 0] - expected_y)[1:-1].max() < 1.6
    assert np.abs(image.pixels[scaled_h // 2, :, 1] - expected_x)[1:-1].max() < 1.6


def test_an_image_that_was_made_for_another_size() -> None:
    """It lies as if it had been made for this one; one of this size is untouched."""
    ramp = np.broadcast_to(np.linspace(0, 255, 300, dtype=np.uint8)[:, None], (200, 300, 3)).copy()
    image = scale_to_fit(ramp, (200, 300), 160)
    assert for_size(image, 160) is image
    other, wanted = for_size(image, 320), scale_to_fit(ramp, (200, 300), 320)
    assert other.letterbox == wanted.letterbox
    assert np.abs(other.pixels.astype(int) - wanted.pixels).mean() < 3
