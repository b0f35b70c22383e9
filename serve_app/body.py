"""Reading a request's body without trusting it: content type, size before and while reading, time while reading."""

from __future__ import annotations

import asyncio
import math

from starlette.requests import Request

from pipeline.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, UnsupportedMediaType

TIMEOUT_HEADER = "x-request-timeout-seconds"


async def read_json_body(request: Request, max_bytes: int, timeout_s: float) -> bytearray:
    """The body's bytes.

    Args:
        request: not read yet.
        max_bytes: largest body.
        timeout_s: longest time for all of it, seconds; a body that drips does not hold its place for longer.
    Raises:
        UnsupportedMediaType: the content type is not JSON.
        LimitExceeded: larger than `max_bytes`; raised from Content-Length before reading, else as soon as it is passed.
        DeadlineExceeded: not all there in time.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type must be application/json, got {content_type[:80] or 'none'!r}.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded("The request's deadline passed before its body was all there.") from error


async def _read(request: Request, max_bytes: int) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return body


def requested_timeout_s(request: Request) -> float | None:
    """The client's own deadline from its header, seconds; None when it names none.

    Raises:
        InvalidRequest: not a positive number.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequest(f"Header {TIMEOUT_HEADER} must be a positive number of seconds.")
    return seconds


def _too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"The request body is larger than the limit of {max_bytes / 1e6:g} MB (ingress.max_body_mb).", code="body_too_large"
    )
