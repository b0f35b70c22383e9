"""Decodes image files from untrusted sources to BGR pixels.

    byte limit ─▶ format by allow-list ─▶ pixel limit (header only) ─▶ structure limits ─▶ decode (scaled) ─▶ BGR ─▶ rotated upright

Serving, training, evaluation and drawing all decode here, so they see the same pixels.
No memory is allocated for pixels before the header passed the limits. Truncated files are refused. Metadata is only used for the
orientation (EXIF, else XMP; `irot` and `imir` of AVIF); a damaged orientation is ignored. All exceptions of Pillow are mapped here.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from pipeline.errors import ConfigurationError, ImageError, LargeImage, LimitExceeded
from pipeline.images.colours import image_to_bgr
from pipeline.images.jpeg_scans import MAX_JPEG_SCANS, channels_of_first_scan, has_too_many_scans
from pipeline.images.letterbox import make_letterbox
from pipeline.images.orientation import FIRST_SIDEWAYS, png_has_metadata, read_orientation, rotate_upright, rotated_hw
from pipeline.images.sixteen_bit import correct_planar_tiff, is_sixteen_bit, lower_bytes
from pipeline.images.webp import is_still_webp, still_webp_to_bgr

FORMAT_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(avif|avis|mif1)",
}
"""Accepted formats, by their names in Pillow, and a pattern for the first bytes of their files."""

LONGEST_SIDE = 65_535
"""Pixels; the limit of JPEG. Long thin images are expensive as run-length masks: 29 s for 1 x 50,000,000 pixels."""

UNSCALED_BYTES_PER_PIXEL = 12
"""Peak memory of decoding at full size, bytes per pixel, measured at 16 megapixels: PNG and TIFF 8, with 12 bits in 16-bit channels 12;
WebP 7 to 11; AVIF 10 to 12. Above it are an AVIF with transparency (14), and a TIFF with such channels in one compressed strip (16)."""

ANIMATED_WEBP_BYTES_PER_PIXEL, KEPT_JPEG_BYTES_PER_PIXEL = 17, 6
"""The same for two other kinds of files. Pillow decodes an animation on two canvases. For a progressive JPEG, or one with a scan for each
channel, the decoder keeps the coefficients of the whole image."""

TIFF_COMPRESSIONS = frozenset({"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "tiff_jpeg"})
"""Compressions that photos in TIFF files use. Others are refused as a risk: libtiff's fax decoder, for example, writes a line to stderr for
every damaged row, so one small file could fill a disk with logs."""

_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_TIFF_PHOTOMETRIC, _TIFF_STRIP_BYTES, _TIFF_PLANAR = 262, 279, 284
_YCBCR, _ONE_AFTER_THE_OTHER = 6, 2

MAX_PNG_METADATA_BYTES = 4 * 2**20
"""Largest compressed metadata of a PNG, decompressed. Above its own limit of 1 MB Pillow refuses the image, but ICC profiles of printers
have up to 3 MB. All texts of a file together are limited by Pillow, to 64 MB."""
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PNG_METADATA_BYTES

WHITE_LEVEL = (
    "value of white in images with more than 8 bits per channel, such as 4095. null: for each image the smallest of 255, "
    "4095 and 65535 that is not below its highest value, so the frames of a series may differ in brightness."
)
"""What `white_level` means, for the settings of the service and the options of the jobs."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits and options of decoding.

    Args:
        max_pixels: largest width x height of an image.
        max_pixels_unscaled: largest width x height of an image that is not a JPEG. Such images are always decoded at full size, which takes
            up to 12 bytes of memory per pixel. An animated WebP takes 17, so its pixels count as more.
        max_bytes: largest encoded image, bytes.
        exif_orientation: rotate images by their EXIF orientation. False leaves them as stored, as AzureML's scorer does (Pillow rotates
            a TIFF in both cases, also there).
        white_level: white of images with more than 8 bits per channel; None: see `pipeline.images.colours`.
        max_ordinary_pixels: raise LargeImage for an image with more pixels decoded at full size; None never does.
    """

    max_pixels: int = 64_000_000
    max_pixels_unscaled: int = 40_000_000
    max_bytes: int = 20_000_000
    max_ordinary_pixels: int | None = None
    exif_orientation: bool = True
    white_level: int | None = None

    def __post_init__(self) -> None:
        if min(self.max_pixels, self.max_pixels_unscaled, self.max_bytes) < 1:
            raise ConfigurationError("max_pixels, max_pixels_unscaled and max_bytes must be at least 1")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A decoded image as its file stores it.

    Args:
        bgr: (h, w, 3) uint8, possibly decoded at 1/2, 1/4 or 1/8.
        full_hw: height and width as stored at full size, pixels.
        orientation: EXIF orientation, 1 to 8, for `rotate_upright`.
    """

    bgr: NDArray[np.uint8]
    full_hw: tuple[int, int]
    orientation: int

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width at full size after rotation, pixels."""
        return rotated_hw(self.full_hw, self.orientation)

    @property
    def upright_bgr(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, the pixels after rotation."""
        return rotate_upright(self.bgr, self.orientation)

    @property
    def changes_unseen(self) -> bool:
        """Whether rotating or mirroring changes the pixels but not the size."""
        return self.orientation > 1 and self.upright_hw == self.full_hw


def decode_image(data: bytes, limits: DecodeLimits, target_size: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an image file and rotate it upright.

    Args:
        data: an encoded image file.
        limits: limits and options.
        target_size: side of the square that the image will be scaled to fit, pixels. A JPEG at least twice as large is decoded at 1/2, 1/4
            or 1/8 of its size, but never smaller than needed. None decodes at full size.
    Returns:
        (H, W, 3) uint8 BGR, possibly reduced as above, and the full (height, width) of the image.
    Raises:
        ImageError: `image_not_decodable` or `unsupported_image_format`.
        LimitExceeded: `image_too_large` (bytes) or `too_many_pixels`; LargeImage, see `max_ordinary_pixels`.
    """
    stored = decode_stored(data, limits, target_size)
    return stored.upright_bgr, stored.upright_hw


def decode_stored(data: bytes, limits: DecodeLimits, target_size: int | None = None) -> StoredImage:
    """Decode the first frame without rotating it; arguments and errors as `decode_image`."""
    check_byte_count(len(data), limits.max_bytes)
    _silence_pillow()
    with _open(io.BytesIO(data), limits) as image:
        _check_pixels(image, limits, data)
        try:
            _check_structure(image, data, limits)
            return _decode(image, data, limits, target_size)
        except (ImageError, LimitExceeded):
            raise
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(limits.max_pixels) from error
        except Exception as error:  # on damaged files, Pillow may raise almost any exception type
            raise ImageError("The image is damaged or truncated and cannot be decoded.") from error


def upright_size(photo: Path, limits: DecodeLimits) -> tuple[int, int]:
    """Height and width of an image file after rotation, pixels, as `decode_image` returns them; reads only the header.

    Raises:
        OSError: the file cannot be read.
        ImageError, LimitExceeded: as `decode_image`, as far as the header shows.
    """
    check_byte_count(photo.stat().st_size, limits.max_bytes)
    _silence_pillow()
    with photo.open("rb") as file, _open(file, limits) as image:
        _check_pixels(image, limits)
        width, height = image.size
        # To find the orientation of a PNG, Pillow may have to decode it: metadata may follow the pixels.
        may_rotate = limits.exif_orientation and (image.format != "PNG" or png_has_metadata(file))
        orientation = read_orientation(image) if may_rotate else 1
        if image.format == "TIFF" and image.tag_v2.get(ExifTags.Base.Orientation) in range(FIRST_SIDEWAYS, 9):  # type: ignore[attr-defined]
            return height, width  # Pillow has already swapped the size
        return rotated_hw((height, width), orientation)


def _check_pixels(image: Image.Image, limits: DecodeLimits, data: bytes = b"") -> None:
    """Without `data`, a JPEG with a scan for each channel counts as one that needs little memory."""
    check_pixel_count(image.size, limits.max_pixels)
    unscaled = _pixels_at_full_size(image, data)
    if unscaled > limits.max_pixels_unscaled:
        raise LimitExceeded(
            f"The image of {image.width} x {image.height} is not a JPEG and has more than {limits.max_pixels_unscaled / 1e6:g} megapixels "
            "(image_loader.max_megapixels_unscaled).",
            code="too_many_pixels",
        )
    if limits.max_ordinary_pixels is not None and unscaled > limits.max_ordinary_pixels:
        raise LargeImage(f"The image of {image.width} x {image.height} is large.")


def _pixels_at_full_size(image: Image.Image, data: bytes) -> int:
    """Pixels, weighted by the memory that decoding takes; 0 for a JPEG that needs little."""
    taken = UNSCALED_BYTES_PER_PIXEL
    if image.format in ("JPEG", "MPO"):
        has_partial_scan = bool(data) and channels_of_first_scan(data) < image.layers  # type: ignore[attr-defined]
        taken = KEPT_JPEG_BYTES_PER_PIXEL if "progressive" in image.info or has_partial_scan else 0
    elif image.format == "WEBP" and not is_still_webp(image):
        taken = ANIMATED_WEBP_BYTES_PER_PIXEL
    return image.width * image.height * taken // UNSCALED_BYTES_PER_PIXEL


def check_byte_count(byte_count: int, max_bytes: int) -> None:
    """Raise LimitExceeded `image_too_large` when an encoded image has more bytes than allowed."""
    if byte_count > max_bytes:
        message = f"The image is larger than {max_bytes / 1e6:g} MB (image_loader.max_image_mb)."
        raise LimitExceeded(message, code="image_too_large")


def check_pixel_count(size_wh: tuple[int, int], max_pixels: int) -> None:
    """Raise LimitExceeded `too_many_pixels` when width times height is over the limit, ImageError when it is zero."""
    width, height = size_wh
    if width < 1 or height < 1:
        raise ImageError("The image has no pixels.")
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels, f" of {width} x {height}")
    if max(width, height) > LONGEST_SIDE:
        raise LimitExceeded(
            f"The image of {width} x {height} has a side of more than {LONGEST_SIDE} pixels.", code="too_many_pixels"
        )


def _too_many_pixels(max_pixels: int, size: str = "") -> LimitExceeded:
    message = f"The image{size} has more than {max_pixels / 1e6:g} megapixels (image_loader.max_megapixels)."
    return LimitExceeded(message, code="too_many_pixels")


def _open(file: BinaryIO, limits: DecodeLimits) -> Image.Image:
    try:
        return Image.open(file, formats=tuple(FORMAT_MAGIC))
    except UnidentifiedImageError as error:
        file.seek(0)
        _refuse_unidentified(file.read(16), error)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(limits.max_pixels) from error
    except Exception as error:  # a damaged header, in as many types as there are plugins
        raise ImageError("The image's header is damaged.") from error


def _refuse_unidentified(beginning: bytes, error: Exception) -> NoReturn:
    for name, magic in FORMAT_MAGIC.items():
        if re.match(magic, beginning, re.DOTALL):
            raise ImageError(
                f"The file begins like a {name} image, but its header is damaged or describes pixels that are not read."
            ) from error
    message = f"The data is not an image in an accepted format. Accepted: {', '.join(FORMAT_MAGIC)}."
    raise ImageError(message, code="unsupported_image_format") from error


def _check_structure(image: Image.Image, data: bytes, limits: DecodeLimits) -> None:
    """Refuse files that would cost a decoder much more time or memory than their number of pixels suggests."""
    if image.format in ("JPEG", "MPO") and has_too_many_scans(data):
        raise ImageError(f"The JPEG has more than {MAX_JPEG_SCANS} scans.")
    if image.format == "TIFF":
        _check_tiff_structure(image, limits)


def _check_tiff_structure(image: Image.Image, limits: DecodeLimits) -> None:
    compression = image.info.get("compression", "raw")
    if compression not in TIFF_COMPRESSIONS:
        message = f"The TIFF's compression is not accepted. Accepted: {', '.join(sorted(TIFF_COMPRESSIONS))}."
        raise ImageError(message, code="unsupported_image_format")
    tags = image.tag_v2  # type: ignore[attr-defined]
    check_pixel_count((tags.get(_TIFF_TILE_WIDTH, 1), tags.get(_TIFF_TILE_LENGTH, 1)), limits.max_pixels)
    if compression == "raw":
        _check_raw_tiff(image)


def _check_raw_tiff(image: Image.Image) -> None:
    """Refuse uncompressed TIFFs that Pillow reads without an error, but wrongly. Compressed ones are read by libtiff."""
    tags, pixels = image.tag_v2, image.width * image.height  # type: ignore[attr-defined]
    planes = len(image.getbands()) if tags.get(_TIFF_PLANAR) == _ONE_AFTER_THE_OTHER else 1
    areas = ((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in image.tile)  # type: ignore[attr-defined]
    if sum(areas) < pixels * planes:  # the rest would be black
        raise ImageError("The TIFF's strips or tiles do not cover the whole image.")
    if tags.get(_TIFF_PHOTOMETRIC) == _YCBCR and sum(tags.get(_TIFF_STRIP_BYTES, ())) < 3 * pixels:
        raise ImageError("An uncompressed TIFF with subsampled colours is not read.", code="unsupported_image_format")


def _decode(image: Image.Image, data: bytes, limits: DecodeLimits, target_size: int | None) -> StoredImage:
    full_hw = None
    if target_size is not None and image.format in ("JPEG", "MPO"):
        full_hw = image.height, image.width
        scaled_h, scaled_w = make_letterbox(full_hw, target_size).scaled_hw
        image.draft(image.mode, (scaled_w, scaled_h))
    if is_still_webp(image):
        bgr = still_webp_to_bgr(data)
    else:
        correct_planar_tiff(image)
        lower = functools.partial(lower_bytes, data) if is_sixteen_bit(image) else None
        bgr = image_to_bgr(image, limits.white_level, lower)
    # After decoding: Pillow rotates a TIFF while loading it, and then reports no orientation.
    return StoredImage(bgr, full_hw or bgr.shape[:2], read_orientation(image) if limits.exif_orientation else 1)


def _silence_pillow() -> None:
    """Ignore Pillow's warnings: about metadata that is not used, and about sizes that are already checked.

    A global filter, because `catch_warnings` is not thread-safe; added again if something has reset the filters.
    """
    module = re.compile(r"PIL\.")
    if ("ignore", None, Warning, module, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=module.pattern)
