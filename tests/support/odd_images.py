"""Images that readers disagree about: wide values, transparency, colour spaces, and every way to say which side is up.

Each is an encoded file of one picture, and the picture: (H, W, 3) uint8 RGB, upright, as a person should see it.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 96, 64
STORED_AS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""Pillow's transpose method that stores an upright picture with this EXIF orientation."""
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class OddImage:
    """A file, what it shows, and how far from that any value may be (grey levels)."""

    suffix: str
    data: bytes
    rgb: np.ndarray
    tolerance: int = 1


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth colourful picture: red grows to the right, green downwards, a blue spot at the top left."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 255 * np.exp(-((x - width / 3) ** 2 + (y - height / 3) ** 2) / (2 * (height / 5) ** 2))
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, blue], axis=-1).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """An image as file bytes."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def stored_with(orientation: int, image_format: str, image: Image.Image | None = None, **options: object) -> bytes:
    """A file whose pixels lie as this orientation says, without saying it."""
    image = image or picture()
    if orientation in STORED_AS:
        image = image.transpose(Image.Transpose(STORED_AS[orientation]))
    lossy = {"quality": 95} if image_format in ("JPEG", "WEBP", "AVIF") else {}
    return encode(image, image_format, **lossy, **options)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def exif_as_byte(orientation: int) -> bytes:
    """The tag in type BYTE, where the standard says SHORT; little-endian TIFF header, one entry."""
    entry = struct.pack("<HHIBBBB", ORIENTATION, 1, 1, orientation, 0, 0, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def on_white(rgba: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture with alpha on a white background."""
    values = np.asarray(rgba.convert("RGBA")).astype(float)
    alpha = values[..., 3:] / 255
    return np.rint(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def with_alpha(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def as_lab(image: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))


def _wide(factor: int, suffix: str, *options: int, alpha: bool = False) -> bytes:
    """The picture in 16 bits a channel, its 8 bits times this factor; alpha has all of its 16."""
    values = np.asarray(with_alpha("RGB") if alpha else picture()).astype(np.uint16) * factor
    if alpha:
        values[..., 3] = values[..., 3] // factor * 257
    bgr = values[..., [2, 1, 0, 3] if alpha else [2, 1, 0]]
    written, data = cv2.imencode(suffix, np.ascontiguousarray(bgr), options)
    assert written
    return data.tobytes()


def _png(bits: int, colour_type: int, rows: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG that no library here writes; `rows` as stored."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour_type, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"") + chunk(b"IDAT", zlib.compress(pixels))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def _wide_grey_and_alpha(factor: int) -> bytes:
    return _png(16, 4, (np.asarray(with_alpha("L")).astype(np.uint16) * np.array([factor, 257], np.uint16)).astype(">u2"))


def _with_transparent_colour() -> dict[str, OddImage]:
    """PNGs that name one colour as transparent, that of the top left corner, in other bits than 8."""
    rgb, odd = np.asarray(picture()).copy(), {}
    rgb[:16, :16] = 10, 200, 30
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    for bits in (2, 4, 16):
        values = grey.astype(int) * (2**bits - 1) // 255
        seen = np.rint(values * 255 / (2**bits - 1)).astype(np.uint8)
        seen[values == values[0, 0]] = 255
        packed = values.astype(">u2") if bits == 16 else _packed(values, bits)
        data = _png(bits, 0, packed, struct.pack(">H", values[0, 0]))
        odd[f"{bits}-bit grey PNG with a transparent grey"] = OddImage(".png", data, np.repeat(seen[..., None], 3, axis=2))
    seen = rgb.copy()
    seen[:16, :16] = 255
    for factor, name in ((257, "16"), (16, "12 of 16")):
        values = rgb.astype(np.uint16) * factor
        values[8:16, 8:16, 2] -= 1  # nearly the transparent colour
        partly = seen.copy()
        partly[8:16, 8:16] = rgb[0, 0]
        data = _png(16, 2, values.astype(">u2"), struct.pack(">HHH", *values[0, 0]))
        odd[f"{name}-bit RGB PNG with a transparent colour"] = OddImage(".png", data, partly)
    return odd


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Values of fewer than 8 bits, several in each byte."""
    each = values.reshape(len(values), -1, 8 // bits)
    return (each << np.arange(8 - bits, -1, -bits)).sum(axis=-1).astype(np.uint8)


def tiff(strips: list[np.ndarray], photometric: int = 1, planar: int = 1, *, deflated: bool = False) -> bytes:
    """A TIFF of this machine's byte order, little-endian; each strip is the whole image or one channel."""
    samples, bits = 3 if photometric == 2 else 1, strips[0].dtype.itemsize * 8
    parts = [zlib.compress(strip.tobytes()) if deflated else strip.tobytes() for strip in strips]
    data, lengths = b"".join(parts), list(map(len, parts))
    longs = 8 + len(data)  # the offsets, the lengths and the bits of each channel stand before the directory
    more = struct.pack(f"<{2 * len(parts)}I", *(8 + sum(lengths[:i]) for i in range(len(parts))), *lengths)
    more += struct.pack("<3H2x", *[bits] * 3)
    one = len(parts) == 1
    entries = [
        (256, 3, 1, WIDTH), (257, 3, 1, HEIGHT), (258, 3, samples, bits if samples == 1 else longs + 8 * len(parts)),
        (259, 3, 1, 8 if deflated else 1), (262, 3, 1, photometric), (273, 4, len(parts), 8 if one else longs), (277, 3, 1, samples),
        (278, 3, 1, HEIGHT), (279, 4, len(parts), lengths[0] if one else longs + 4 * len(parts)), (284, 3, 1, planar),
    ]  # fmt: skip
    directory = (
        struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    )
    return b"II*\0" + struct.pack("<I", longs + len(more)) + data + more + directory


def _bmp_without_alpha() -> bytes:
    """A BMP of 32 bits whose header says that the fourth byte is alpha, and whose fourth bytes are all zero."""
    bgra = np.dstack([np.asarray(picture())[::-1, :, ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)])
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, 32, 3, 0, 2835, 2835, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + bgra.nbytes, 0, 0, 14 + len(info)) + info + bgra.tobytes()


def _colours() -> dict[str, OddImage]:
    rgb, grey = np.asarray(picture()), np.asarray(picture().convert("L"))
    grey_rgb = np.repeat(grey[..., None], 3, axis=2)
    palette = picture().quantize(64)
    pale = Image.blend(picture(), Image.new("RGB", (WIDTH, HEIGHT), "grey"), 0.5)  # Lab's 8 bits are coarse for strong colours
    channels = [rgb[..., channel].astype("<u2") for channel in range(3)]
    to_32_bits = np.where(grey == grey.max(), 2**32 - 1, grey.astype(np.int64) * (2**32 // 256)).astype("<u4")
    cut_out = palette.copy()
    seen = on_white(cut_out)
    seen[np.asarray(palette) == 5] = 255
    return {
        "16-bit grey PNG": OddImage(".png", encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), grey_rgb),
        "12 bits in a 16-bit PNG": OddImage(".png", encode(Image.fromarray(grey.astype(np.uint16) * 16), "PNG"), grey_rgb),
        "16-bit grey TIFF": OddImage(".tif", encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"), grey_rgb),
        "16-bit RGB PNG": OddImage(".png", _wide(257, ".png"), rgb),
        "12 bits in a 16-bit RGB PNG": OddImage(".png", _wide(16, ".png"), rgb),
        "8 bits in a 16-bit RGB PNG": OddImage(".png", _wide(1, ".png"), rgb),
        "16-bit RGBA PNG": OddImage(".png", _wide(257, ".png", alpha=True), on_white(with_alpha("RGB"))),
        "12 bits in a 16-bit RGBA PNG": OddImage(".png", _wide(16, ".png", alpha=True), on_white(with_alpha("RGB"))),
        "12 bits in a 16-bit LA PNG": OddImage(".png", _wide_grey_and_alpha(16), on_white(with_alpha("L"))),
        "12 bits in a 16-bit RGB TIFF": OddImage(".tif", _wide(16, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 1), rgb),
        "12 bits in a 16-bit RGB TIFF, LZW": OddImage(".tif", _wide(16, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5), rgb),
        "16-bit RGB TIFF, LZW": OddImage(".tif", _wide(257, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5), rgb),
        "RGBA PNG": OddImage(".png", encode(with_alpha("RGB"), "PNG"), on_white(with_alpha("RGB"))),
        "RGBA TIFF": OddImage(".tif", encode(with_alpha("RGB"), "TIFF"), on_white(with_alpha("RGB"))),
        "RGBA WebP": OddImage(".webp", encode(with_alpha("RGB"), "WEBP", lossless=True), on_white(with_alpha("RGB"))),
        "LA PNG": OddImage(".png", encode(with_alpha("L"), "PNG"), on_white(with_alpha("L"))),
        "palette with a transparent index": OddImage(".png", encode(cut_out, "PNG", transparency=5), seen),
        "CMYK JPEG": OddImage(".jpg", encode(picture().convert("CMYK"), "JPEG", quality=95), rgb, 3),
        "LAB TIFF": OddImage(".tif", encode(as_lab(pale), "TIFF"), np.asarray(pale), 8),
        "16-bit RGB TIFF, channel by channel": OddImage(".tif", tiff([each * 257 for each in channels], 2, 2), rgb),
        "16-bit RGB TIFF, channel by channel, deflated": OddImage(
            ".tif", tiff([each * 257 for each in channels], 2, 2, deflated=True), rgb
        ),
        "12 bits in a 16-bit RGB TIFF, channel by channel": OddImage(".tif", tiff([each * 16 for each in channels], 2, 2), rgb),
        "16-bit grey TIFF, channel by channel": OddImage(".tif", tiff([grey.astype("<u2") * 257], planar=2), grey_rgb),
        "16-bit grey TIFF, 0 is white": OddImage(".tif", tiff([65535 - grey.astype("<u2") * 257], 0), grey_rgb),
        "8-bit grey TIFF, 0 is white, channel by channel": OddImage(".tif", tiff([255 - grey], 0, 2), grey_rgb),
        "32-bit grey TIFF": OddImage(".tif", tiff([to_32_bits]), np.where(grey_rgb == grey.max(), 255, grey_rgb)),
        "BMP with an unused fourth channel": OddImage(".bmp", _bmp_without_alpha(), rgb),
        "float TIFF": OddImage(".tif", encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), grey_rgb),
    }


def _orientations() -> dict[str, OddImage]:
    rgb = np.asarray(picture())
    odd = {}
    for image_format, suffix in {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}.items():
        for value in range(10):  # 0 and 9 mean nothing
            data = stored_with(value, image_format, exif=exif_of(value))
            odd[f"{image_format} EXIF {value}"] = OddImage(suffix, data, rgb, 12)
    for value in (1, 6, 8):
        odd[f"JPEG XMP {value}"] = OddImage(".jpg", stored_with(value, "JPEG", xmp=XMP.format(value).encode()), rgb, 12)
        odd[f"WEBP XMP {value}"] = OddImage(".webp", stored_with(value, "WEBP", xmp=XMP.format(value).encode()), rgb, 12)
        odd[f"TIFF XMP {value}"] = OddImage(".tif", stored_with(value, "TIFF", tiffinfo={700: XMP.format(value).encode()}), rgb)
        odd[f"PNG XMP {value}"] = OddImage(".png", _png_with_xmp(value), rgb)
        odd[f"PNG EXIF {value} behind the pixels"] = OddImage(".png", _png_with_late_exif(value), rgb)
        odd[f"JPEG EXIF {value} as BYTE"] = OddImage(".jpg", stored_with(value, "JPEG", exif=exif_as_byte(value)), rgb, 12)
        odd[f"TIFF {value} as BYTE"] = OddImage(".tif", _tiff_as_byte(value), rgb)
    odd["JPEG EXIF 6 beats XMP 8"] = OddImage(
        ".jpg", stored_with(6, "JPEG", exif=exif_of(6), xmp=XMP.format(8).encode()), rgb, 12
    )
    return odd


def _png_with_xmp(orientation: int) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.format(orientation))
    return stored_with(orientation, "PNG", pnginfo=info)


def _png_with_late_exif(orientation: int) -> bytes:
    """Its eXIf chunk moved behind the pixels, where the standard allows it."""
    data = stored_with(orientation, "PNG", exif=exif_of(orientation))
    start = data.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", data[start : start + 4])
    chunk, end = data[start : start + 12 + length], data.index(b"IEND") - 4
    return data[:start] + data[start + len(chunk) : end] + chunk + data[end:]


def _tiff_as_byte(orientation: int) -> bytes:
    data = stored_with(orientation, "TIFF", tiffinfo={ORIENTATION: orientation})
    short = struct.pack("<HHIH", ORIENTATION, 3, 1, orientation)
    assert short in data
    return data.replace(short, struct.pack("<HHIBB", ORIENTATION, 1, 1, orientation, 0))


def odd_images() -> dict[str, OddImage]:
    """All of them, by name."""
    return _colours() | _with_transparent_colour() | _orientations()
