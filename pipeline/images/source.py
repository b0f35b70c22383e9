"""Tells URLs from base64 in a request's strings, and decodes the base64."""

from __future__ import annotations

import binascii
import re
from contextlib import suppress
from urllib.parse import urlsplit

import pybase64

from pipeline.errors import FetchError, ImageError
from pipeline.images.decode import DecodeLimits, check_byte_count
from pipeline.images.resolver import domain_of

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_DATA_URL = re.compile(
    r"\s*data:(?:image/[a-z0-9.+-]+|application/octet-stream)?(?:;[a-z0-9-]+=[^;,\s]*)*;base64,", re.IGNORECASE
)
_WHITE = " \t\r\n"


def is_url(image: object) -> bool:
    """Whether an image is a URL to fetch, by its scheme only, and not base64 text, bytes or pixels."""
    scheme = _SCHEME.match(image, 0, 64) if isinstance(image, str) else None
    return scheme is not None and scheme[1].lower() != "data"


def url_host(url: str) -> str:
    """Domain, or address, and port of a URL, to tell hosts apart."""
    with suppress(ValueError):
        parts = urlsplit(url.strip())
        name, port = parts.hostname or "", parts.port or parts.scheme
        is_address = ":" in name or name.replace(".", "").isdigit()
        return f"{name if is_address else domain_of(name)}:{port}"
    return url  # malformed: refused when it is fetched


def parse_source(text: str, max_bytes: int = DecodeLimits().max_bytes) -> str | bytes:
    """Tell a URL from base64, and decode the base64.

    Args:
        text: `http(s)://...` in any letter case, `data:image/...;base64,...` (or application/octet-stream or no type, which browsers
            write for files of a kind that they do not know), or base64 (standard alphabet, padded, line breaks allowed).
        max_bytes: most decoded bytes; checked before decoding.
    Returns:
        The http or https URL (str), not yet checked against the fetch policy, or the image file (bytes), not yet decoded.
    Raises:
        FetchError: `url_refused`, a URL of any other scheme.
        ImageError: `invalid_base64`.
        LimitExceeded: `image_too_large`.
    """
    scheme = _SCHEME.match(text, 0, 64)
    if scheme is None:
        return decode_base64(text, max_bytes)
    name = scheme[1].lower()
    if name in ("http", "https"):
        return text.strip()
    data_url = _DATA_URL.match(text, 0, 256)
    if data_url is not None:
        return decode_base64(text[data_url.end() :], max_bytes)
    if name == "data":
        raise FetchError("The URL is refused: a data: URL must begin with data:image/...;base64,", code="url_refused")
    raise FetchError("The URL is refused: only http and https are fetched.", code="url_refused")


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode standard base64 strictly; only white space is skipped.

    Raises:
        ImageError `invalid_base64`: empty, or not base64.
        LimitExceeded: more than `max_bytes`.

    Measured on 4 MB of text: 0.24 ms, with line breaks 2.4 ms (`binascii`: 7.5 and 8.2 ms).
    """
    try:
        data = _decode_strictly(text)
    except (binascii.Error, ValueError) as error:
        message = "The image is neither an http(s) URL nor valid base64 (standard alphabet, with padding)."
        raise ImageError(message, code="invalid_base64") from error
    if not data:
        raise ImageError("The image is an empty string.", code="invalid_base64")
    check_byte_count(len(data), max_bytes)
    return data


def _decode_strictly(text: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return pybase64.b64decode(text.encode("ascii").translate(None, _WHITE.encode()), validate=True)
