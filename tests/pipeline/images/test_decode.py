"""Decoding: right colours of every mode, upright, capped, and nothing but our own errors."""

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigurationError, ImageError, LargeImage, LimitExceeded
from pipeline.images import colours
from pipeline.images.colours import image_to_bgr
from pipeline.images.decode import DecodeLimits, check_pixel_count, decode_image
from tests.support.odd_images import encode, exif_of, odd_images, stored_with
from tests.support.odd_images import picture as photo

LIMITS = DecodeLimits(max_pixels=2_000_000)
ODD = odd_images()
IMAGES = Path(__file__).parents[4] / "shared" / "images"


def decode_rgb(data: bytes, target_size: int | None = None) -> np.ndarray:
    return decode_image(data, LIMITS, target_size)[0][:, :, ::-1]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# ---- formats and colours --------------------------------------------------------------------------------------------

LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("image_format", "options"), LOSSLESS, ids=str)
def test_lossless_formats_are_exact(image_format: str, options: dict) -> None:
    """What went in comes out, as BGR, contiguous."""
    bgr, hw = decode_image(encode(photo(), image_format, **options), LIMITS)
    np.testing.assert_array_equal(bgr[:, :, ::-1], np.asarray(photo()))
    assert hw == (64, 96)
    assert bgr.flags.c_contiguous


@pytest.mark.parametrize(
    ("image_format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("AVIF", {})], ids=str
)
def test_lossy_formats_are_close(image_format: str, options: dict) -> None:
    """Colours stay in their channels."""
    assert distance(decode_rgb(encode(photo(), image_format, quality=95, **options)), np.asarray(photo())) < 3


def test_jpeg_equals_cv2() -> None:
    """The same libjpeg result as cv2.imdecode, which mmdet trains with, to a rounding step."""
    data = encode(photo(640, 480), "JPEG", quality=90)
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decode_image(data, LIMITS)[0].astype(int) - reference).max() <= 2


def grey() -> Image.Image:
    return photo().convert("L")


GREY_RGB = np.asarray(grey().convert("RGB"))
BLACK_WHITE_RGB = np.asarray(grey().convert("1").convert("RGB"))
RGB = np.asarray(photo())
MODES = {
    "grey PNG": (encode(grey(), "PNG"), GREY_RGB, 0),
    "grey JPEG": (encode(grey(), "JPEG", quality=95), GREY_RGB, 1),
    "1-bit PNG": (encode(grey().convert("1"), "PNG"), BLACK_WHITE_RGB, 0),
    "1-bit TIFF": (encode(grey().convert("1"), "TIFF"), BLACK_WHITE_RGB, 0),
    "palette PNG": (encode(photo().quantize(64), "PNG"), np.asarray(photo().quantize(64).convert("RGB")), 0),
    "palette GIF": (encode(photo().quantize(64), "GIF"), np.asarray(photo().quantize(64).convert("RGB")), 1),
    "CMYK TIFF": (encode(photo().convert("CMYK"), "TIFF"), RGB, 1),
    "YCbCr TIFF": (encode(photo().convert("YCbCr"), "TIFF"), RGB, 2),
    "32-bit TIFF of 16-bit values": (encode(Image.fromarray(np.asarray(grey()).astype(np.int32) * 257), "TIFF"), GREY_RGB, 0),
    "32-bit TIFF of 8-bit values": (encode(Image.fromarray(np.asarray(grey()).astype(np.int32)), "TIFF"), GREY_RGB, 0),
    "float TIFF 0..255": (encode(Image.fromarray(np.asarray(grey()).astype(np.float32)), "TIFF"), GREY_RGB, 0),
}


@pytest.mark.parametrize("kind", MODES)
def test_modes_have_right_colours(kind: str) -> None:
    """Every mode gives the picture that one would see."""
    data, expected, tolerance = MODES[kind]
    rgb = decode_rgb(data)
    assert rgb.shape == expected.shape
    assert distance(rgb, expected) <= tolerance


@pytest.mark.parametrize("name", ODD)
def test_odd_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours, transparency on white, the right way up: all that a person sees, however few rows are converted at a time."""
    odd, limits, strips = ODD[name], DecodeLimits(), colours._strips
    bgr, _ = decode_image(odd.data, limits)
    assert np.abs(bgr[..., ::-1].astype(int) - odd.rgb).max() <= odd.tolerance
    monkeypatch.setattr(colours, "STRIP_PIXELS", 700)
    monkeypatch.setattr(colours, "_strips", lambda image, _pixels=0: strips(image, 700))
    np.testing.assert_array_equal(decode_image(odd.data, limits)[0], bgr)


def test_palette_with_transparency_is_on_white() -> None:
    """tRNS of palettes, as bytes and as one index, and of RGB: white shows through."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 20] + [0] * 762)
    image.putpixel((0, 0), 0)
    for data in (
        encode(image, "PNG", transparency=0),
        encode(image, "PNG", transparency=b"\0\xff"),
        encode(image, "GIF", transparency=0),
    ):
        rgb = decode_rgb(data)
        assert tuple(rgb[0, 0]) == (255, 255, 255)
        assert tuple(rgb[4, 4]) == (200, 10, 20)
    rgb = decode_rgb(encode(image.convert("RGB"), "PNG", transparency=(0, 0, 0)))
    assert tuple(rgb[0, 0]) == (255, 255, 255)
    assert tuple(rgb[4, 4]) == (200, 10, 20)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(image_format: str) -> None:
    """Of animations and multi-page files the first picture counts."""
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert distance(decode_rgb(data), np.asarray(frames[0])) < 3


def test_mpo_is_a_jpeg() -> None:
    """Phones write JPEG files with a second picture behind the first (MPO); they are JPEGs, scaled decoding included."""
    data = encode(photo(512, 512), "MPO", save_all=True, append_images=[photo(512, 512)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode_rgb(data).shape == (512, 512, 3)
    assert decode_rgb(data, 100).shape == (128, 128, 3)


def test_nan_and_negative_floats() -> None:
    """NaN, infinities and negative values give a picture, not an error."""
    values = np.linspace(-3, 5, 64 * 64, dtype=np.float32).reshape(64, 64)
    values[0, :3] = np.nan, np.inf, -np.inf
    rgb = decode_rgb(encode(Image.fromarray(values), "TIFF"))
    assert rgb[-1, -1, 0] == 255
    assert tuple(rgb[0, :3, 0]) == (0, 255, 0)
    assert decode_rgb(encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")).max() == 0


# ---- orientation and scaled decoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_switched_off(image_format: str) -> None:
    """As the pixels are stored, in their own width and height."""
    data = stored_with(6, image_format, exif=exif_of(6))
    bgr, hw = decode_image(data, DecodeLimits(exif_orientation=False))
    with Image.open(io.BytesIO(data)) as stored:
        assert hw == bgr.shape[:2] == (stored.height, stored.width)
        assert np.abs(bgr[..., ::-1].astype(int) - np.asarray(stored.convert("RGB"))).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_of_turned_photos(orientation: int) -> None:
    """Scaled decoding and orientation together: true size told, picture upright, not below the target."""
    bgr, hw = decode_image(stored_with(orientation, "JPEG", photo(901, 601), exif=exif_of(orientation)), LIMITS, 220)
    assert hw == (601, 901)
    assert bgr.shape[:2] == (151, 226)
    assert distance(bgr[:, :, ::-1], np.asarray(photo(901, 601).resize((226, 151), Image.Resampling.BOX))) < 3


REDUCTIONS = [(10_000, 400), (400, 400), (399, 400), (201, 400), (200, 200), (199, 200), (101, 200), (100, 100), (50, 100)]


@pytest.mark.parametrize(("target", "expected_width"), REDUCTIONS)
def test_scaled_decoding_never_goes_below_the_target(target: int, expected_width: int) -> None:
    """Only photos at least twice the target are reduced, and never below it."""
    bgr, hw = decode_image(encode(photo(400, 300), "JPEG"), LIMITS, target)
    assert hw == (300, 400)
    assert bgr.shape[1] == expected_width


def test_damaged_exif_is_ignored() -> None:
    """A picture with broken metadata is still a picture, and nothing is warned about."""
    data = stored_with(6, "JPEG", exif=exif_of(6))
    start = data.index(b"Exif\0\0") + 6
    for cut in (0, 2, 4, 8, 10):
        broken = data[: start + cut] + b"\xff" * 8 + data[start + cut + 8 :]
        assert decode_image(broken, LIMITS)[0].size == RGB.size


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(image_format: str, keep: float) -> None:
    """Half a file is no image."""
    data = encode(photo(200, 150), image_format)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * keep)], LIMITS)
    assert caught.value.code in ("image_not_decodable", "unsupported_image_format")


def with_tag(tiff: bytes, tag: int, before: int, after: int) -> bytes:
    """A TIFF with another value in one of its tags, a SHORT or LONG."""
    (kind,) = [kind for kind in (3, 4) if struct.pack("<HHII", tag, kind, 1, before) in tiff]
    return tiff.replace(struct.pack("<HHII", tag, kind, 1, before), struct.pack("<HHII", tag, kind, 1, after))


ROWS_PER_STRIP, STRIP_BYTES = 278, 279


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_tiff_with_too_few_strips_is_refused(mode: str) -> None:
    """Pillow would leave the rest of the picture black."""
    with pytest.raises(ImageError, match="do not cover the whole image"):
        decode_image(with_tag(encode(photo().convert(mode), "TIFF"), ROWS_PER_STRIP, 64, 32), LIMITS)


def test_a_raw_tiff_with_subsampled_colours_is_refused() -> None:
    """Pillow would read three bytes for each pixel, also those behind the strip."""
    size = 96 * 64 * 3
    with pytest.raises(ImageError, match="subsampled colours") as caught:
        decode_image(with_tag(encode(photo().convert("YCbCr"), "TIFF"), STRIP_BYTES, size, size // 2), LIMITS)
    assert caught.value.code == "unsupported_image_format"


OTHER_DATA = {"nothing": b"", "text": b"hello world", "PDF": b"%PDF-1.7\n", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
OTHER_DATA |= {"EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PPM": b"P6 1 1 255\nabc", "HTML": b"<!doctype html>"}
OTHER_DATA |= {"PSD": encode(photo(), "PNG")[:0] + b"8BPS\0\1", "TGA": encode(photo(), "TGA"), "ICO": encode(photo(), "ICO")}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_other_formats_are_refused(kind: str) -> None:
    """Formats not on the list are not opened, even if Pillow could; the message lists the accepted ones."""
    with pytest.raises(ImageError, match="Accepted: JPEG, PNG") as caught:
        decode_image(OTHER_DATA[kind], LIMITS)
    assert caught.value.code == "unsupported_image_format"
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("name", ["max_pixels", "max_pixels_unscaled", "max_bytes"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    """They stop the start."""
    with pytest.raises(ConfigurationError):
        DecodeLimits(**{name: 0})


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_is_not_a_photo(compression: str, capfd) -> None:
    """Fax-compressed TIFFs are refused before libtiff can write a line of log for each damaged row."""
    data = bytearray(encode(grey().convert("1"), "TIFF", compression=compression))
    data[8:60] = b"\x55" * 52
    with pytest.raises(ImageError, match="compression") as caught:
        decode_image(bytes(data), LIMITS)
    assert caught.value.code == "unsupported_image_format"
    assert capfd.readouterr().err == ""


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BIG = {
    "PNG": png_of(20_000, 20_000, zlib.compress(b"\0" * 10_000_000)),
    "PNG of 4 billion squared": png_of(2**31 - 1, 2**31 - 1),
    "PNG a little over": png_of(2001, 1000),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "TIFF with huge tiles": None,
}


def tiff_with_huge_tiles() -> bytes:
    tags = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, 32768), (323, 32768), (324, 8), (325, 8)]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8) + body


@pytest.mark.parametrize("kind", BIG)
def test_too_many_pixels_cost_nothing(kind: str) -> None:
    """Bombs are refused by their header, in milliseconds and without memory."""
    data = BIG[kind] or tiff_with_huge_tiles()
    tracemalloc.start()
    started = time.thread_time()
    with pytest.raises(LimitExceeded, match=r"more than 2 megapixels \(image_loader\.max_megapixels\)") as caught:
        decode_image(data, LIMITS)
    assert time.thread_time() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_large_metadata_of_a_png(kind: bytes) -> None:
    """The ICC profile of a printer has up to 3 MB; the picture is what counts."""
    data, body = encode(photo(), "PNG"), b"name\0\0" + zlib.compress(bytes(3_000_000))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    at = data.index(b"IDAT") - 4
    np.testing.assert_array_equal(decode_rgb(data[:at] + chunk + data[at:]), np.asarray(photo()))


def test_text_bomb_in_png() -> None:
    """A compressed comment that would grow to 30 megabytes is not unpacked."""
    comment = b"Comment\0\0" + zlib.compress(b"A" * 30_000_000)
    chunk = struct.pack(">I", len(comment)) + b"zTXt" + comment + struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    data = encode(photo(), "PNG")
    tracemalloc.start()
    with pytest.raises(ImageError):
        decode_image(data[:33] + chunk + data[33:], LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def repeated_scan(times: int, between: bytes = b"", **options) -> bytes:
    """A progressive JPEG whose last scan is there so often, with some bytes before each."""
    data = encode(photo(), "JPEG", progressive=True, **options)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + (between + data[scan:-2]) * times + data[-2:]


HIDDEN_BY = {
    "nothing": b"",
    "a marker without length": b"\xff\x02\xff\xff",
    "fill bytes": b"\xff" * 3,
    "an empty segment": b"\xff\xfe\0\0",
}


@pytest.mark.parametrize("between", HIDDEN_BY.values(), ids=HIDDEN_BY)
def test_many_scans_in_jpeg(between: bytes) -> None:
    """A progressive JPEG with thousands of scans would keep the decoder busy for minutes."""
    data = repeated_scan(5000, between, restart_marker_blocks=1)
    started = time.thread_time()
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode_image(data, LIMITS)
    assert time.thread_time() - started < 0.2


def test_scans_beside_the_picture_do_not_count() -> None:
    """Bytes that look like scans in metadata, in a second picture, and in the film behind a motion photo."""
    looks_like = b"\xff\xda" * 5000
    segment = b"\xff\xee" + struct.pack(">H", 2 + len(looks_like)) + looks_like
    data = encode(photo(), "JPEG", quality=95)
    for file in (data + looks_like, data[:2] + segment + data[2:], data + repeated_scan(150)):
        assert distance(decode_rgb(file), RGB) < 3
    assert distance(decode_rgb(repeated_scan(80)), RGB) < 10


def jpeg_in_tiff(jpeg: bytes) -> bytes:
    """A TIFF whose only strip is a JPEG of `photo()`, grey."""
    tags = [(256, 96), (257, 64), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1), (278, 64), (279, len(jpeg))]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8 + len(jpeg)) + jpeg + body


def test_progressive_jpeg_in_tiff(capfd) -> None:
    """Libtiff refuses those with too many scans; the bytes of a progressive JPEG's marker may be in any TIFF."""
    progressive = encode(grey(), "JPEG", progressive=True, quality=95)
    assert distance(decode_rgb(jpeg_in_tiff(progressive)), GREY_RGB) < 3
    scan = progressive.rindex(b"\xff\xda")
    with pytest.raises(ImageError):
        decode_image(jpeg_in_tiff(progressive[:scan] + progressive[scan:-2] * 5000 + progressive[-2:]), LIMITS)
    assert "exceeds maximum scans" in capfd.readouterr().err


def test_byte_cap() -> None:
    """The byte cap is exact and told."""
    data = encode(photo(), "PNG")
    assert decode_image(data, DecodeLimits(max_bytes=len(data)))[0].shape == RGB.shape
    with pytest.raises(LimitExceeded, match=r"MB \(image_loader\.max_image_mb\)") as caught:
        decode_image(data, DecodeLimits(max_bytes=len(data) - 1))
    assert caught.value.code == "image_too_large"


def test_pillow_warnings_do_not_decide() -> None:
    """A large picture under the cap decodes although Pillow would warn, also when warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
            assert decode_image(encode(photo(), "PNG"), LIMITS)[1] == (64, 96)
            with pytest.raises(LimitExceeded):
                decode_image(encode(photo(200, 150), "PNG"), LIMITS)


# ---- the shared collection ------------------------------------------------------------------------------------------

NOT_DECODABLE = {"testimages__monkey12.jpg"}


def shared_images() -> list[Path]:
    return sorted(path for path in IMAGES.glob("*/*") if path.is_file())


@pytest.mark.skipif(not IMAGES.is_dir(), reason="the shared collection of awkward images is not on this machine")
@pytest.mark.parametrize("path", shared_images(), ids=lambda path: path.name)
def test_shared_images(path: Path) -> None:
    """Every file gives a picture with content, and JPEGs the same one as cv2; 12-bit JPEG is refused in our own words."""
    data = path.read_bytes()
    if path.name in NOT_DECODABLE:
        with pytest.raises(ImageError):
            decode_image(data, DecodeLimits())
        return
    bgr, hw = decode_image(data, DecodeLimits(), None)
    assert bgr.shape == (*hw, 3)
    assert bgr.std() > 0.5
    if path.suffix == ".jpg":
        reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert reference.shape == bgr.shape
        assert distance(bgr, reference) < 1


@pytest.mark.skipif(not IMAGES.is_dir(), reason="the shared collection of awkward images is not on this machine")
@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_shared_orientations_agree(name: str) -> None:
    """The nine files of one photo with nine orientations decode to one picture, at the reduced size too."""
    files = [(IMAGES / "exif" / f"{name}_{n}.jpg").read_bytes() for n in range(9)]
    pictures = [decode_image(data, DecodeLimits(), 320) for data in files]
    assert len({hw for _, hw in pictures}) == 1
    assert max(distance(pictures[1][0], bgr) for bgr, _ in pictures) < 6


def test_long_and_thin_is_refused() -> None:
    """Few pixels, but a side that makes run lengths of its masks take half a minute."""
    check_pixel_count((65_535, 10), 2_000_000)
    with pytest.raises(LimitExceeded, match="side of more than 65535"):
        check_pixel_count((1_000_000, 1), 2_000_000)


@pytest.mark.parametrize(
    ("kind", "options", "is_large"),
    [("PNG", {}, True), ("WEBP", {}, True), ("JPEG", {}, False), ("JPEG", {"progressive": True}, True)],
    ids=["PNG", "WebP", "JPEG", "progressive JPEG"],
)
def test_which_images_are_large(kind: str, options: dict, is_large: bool) -> None:
    """Those that take memory for each of their pixels; a baseline JPEG is reduced while it is decoded."""
    file = io.BytesIO()
    Image.new("RGB", (600, 500)).save(file, kind, **options)
    limits = DecodeLimits(max_ordinary_pixels=100_000)
    with pytest.raises(LargeImage) if is_large else nullcontext():
        decode_image(file.getvalue(), limits, 320)


def jpeg_channel_by_channel(image: Image.Image) -> bytes:
    """A baseline JPEG with a scan for each channel, made of three grey ones."""
    tables, scans = b"", b""
    for number, channel in enumerate(image.convert("YCbCr").split(), 1):
        grey_jpeg = encode(channel, "JPEG", quality=95)
        frame, huffman, scan = (grey_jpeg.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
        size, parts = grey_jpeg[frame + 4 : frame + 9], b"".join(bytes([part, 0x11, 0]) for part in (1, 2, 3))
        tables = grey_jpeg[:frame] + b"\xff\xc0\0\x11" + size + b"\x03" + parts + grey_jpeg[huffman:scan]
        scans += b"\xff\xda\0\x08\x01" + bytes([number]) + grey_jpeg[scan + 6 : -2]
    return tables + scans + b"\xff\xd9"


def test_a_jpeg_channel_by_channel_is_large() -> None:
    """Its decoder keeps the whole image's coefficients, as that of a progressive one."""
    data = jpeg_channel_by_channel(photo())
    assert distance(decode_rgb(data), RGB) < 3
    assert decode_image(data, DecodeLimits(max_ordinary_pixels=96 * 64 // 2))[1] == (64, 96)
    with pytest.raises(LargeImage):
        decode_image(data, DecodeLimits(max_ordinary_pixels=96 * 64 // 2 - 1))


@pytest.mark.parametrize(("animated", "most"), [(False, 300_000), (True, 425_000)])
def test_pixels_count_by_their_memory(animated: bool, most: int) -> None:
    """Pillow decodes an animated WebP on two canvases: 17 bytes per pixel instead of 12."""
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.new("RGB", (600, 500), "red")]} if animated else {}
    Image.new("RGB", (600, 500)).save(file, "WEBP", **more)
    decode_image(file.getvalue(), DecodeLimits(max_pixels_unscaled=most), 320)
    with pytest.raises(LimitExceeded, match="megapixels_unscaled"):
        decode_image(file.getvalue(), DecodeLimits(max_pixels_unscaled=most - 1), 320)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_webp_as_pillow_decodes_it(mode: str, lossless: bool) -> None:
    """OpenCV decodes a WebP with one picture to the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=lossless)
    with Image.open(file) as image:
        expected = image_to_bgr(image)
    np.testing.assert_array_equal(decode_image(file.getvalue(), DecodeLimits())[0], expected)


MEASURE = """
import sys
from pathlib import Path
from pipeline.images.load import DecodeLimits, load_image

def peak_kb():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])

data = sys.stdin.buffer.read()
before = peak_kb()
load_image(data, DecodeLimits(), 320)
print(1024 * (peak_kb() - before))
"""


def large_webp(**options) -> bytes:
    return encode(Image.new("RGB", (4000, 4000), (90, 110, 120)), "WEBP", method=0, **options)


def large_png_of_12_bits() -> bytes:
    return cv2.imencode(".png", np.full((4000, 4000, 4), 4000, np.uint16))[1].tobytes()


@pytest.mark.parametrize(
    "make",
    [large_webp, partial(large_webp, lossless=True), large_png_of_12_bits],
    ids=["WebP", "lossless WebP", "12 bits in a 16-bit PNG"],
)
def test_the_memory_of_a_large_image(make: Callable[[], bytes]) -> None:
    """At most 12 bytes per pixel; for the WebP, Pillow takes 17."""
    done = subprocess.run([sys.executable, "-c", MEASURE], input=make(), capture_output=True, check=True)
    assert 3 < int(done.stdout) / 4000**2 <= 12
