"""Read a body within limits on type, size (each and total) and time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from pipeline.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, Overloaded, UnsupportedMediaType

TIMEOUT_HEADER = "x-request-timeout-seconds"
EARLIER, MAX_EARLIER_S = 0.05, 0.5
"""How much earlier than the client's deadline the service answers: this share of it, seconds at most."""
MAX_SILENCE_S = 10.0
"""A body of which nothing comes for so long has stalled."""
BODIES_COMING = 256
"""Bodies that may be on their way in, however small, beside those of the images in flight."""

Hold = Callable[[int], None]


class BodyBudget:
    """Bytes of all bodies that an ingress replica reads or holds.

    Without it, uploads that stall before their end would fill the memory long before they are admitted as images. What was only
    announced does not count: a few idle clients would keep everybody out. But each body counts for a little from the start, so that
    there is an end to their number before they hold all requests that Ray lets into a replica.

    Args:
        max_bytes: of all together.
        most: bodies at a time; each counts for its share of the bytes at least.
        refusal: makes the error of a request that finds no room.
    """

    def __init__(self, max_bytes: int, most: int, refusal: Callable[[], Overloaded]) -> None:
        self._left = max_bytes
        self._least = max_bytes // most
        self._refusal = refusal

    @contextmanager
    def share(self) -> Iterator[Hold]:
        """One request's share, given back at the end; yields what raises it to so many bytes.

        Raises:
            Overloaded: there is no room; from what is yielded, too.
        """
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            more = max(count - held, 0)
            if more > self._left:
                raise self._refusal()
            self._left -= more
            held += more

        hold(self._least)
        try:
            yield hold
        finally:
            self._left += held


async def read_body(request: Request, max_bytes: int, timeout_s: float, hold: Hold) -> bytearray:
    """The body's bytes.

    Args:
        request: not read yet.
        max_bytes: largest body.
        timeout_s: longest time for all of it, seconds; a body that drips does not hold its place for longer.
        hold: takes the bytes out of the replica's budget, as they come.
    Raises:
        UnsupportedMediaType: the body is compressed.
        LimitExceeded: larger than `max_bytes`; raised from Content-Length before reading, else as soon as it is passed.
        DeadlineExceeded: not all there in time, or nothing came for `MAX_SILENCE_S`.
        Overloaded: from `hold`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding[:80]!r} is not read: send the body as it is, without this header."
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        length = int(declared[:20])  # Python refuses numbers of thousands of digits
        if length > max_bytes:
            raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes, hold)
    except TimeoutError as error:
        raise DeadlineExceeded("The request's deadline passed before its body was all there.") from error


async def _read(request: Request, max_bytes: int, hold: Hold) -> bytearray:
    body = bytearray()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(MAX_SILENCE_S) as silence:
            async for chunk in request.stream():
                silence.reschedule(loop.time() + MAX_SILENCE_S)
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                hold(len(body))
    except TimeoutError as error:
        raise DeadlineExceeded(f"Nothing of the request's body came for {MAX_SILENCE_S:g} s.") from error
    return body


def requested_timeout_s(request: Request) -> float | None:
    """The client's own deadline from its header, seconds, or a little less; None when it names none.

    Ray Serve reads the header, too, began to count before us, and would answer without ids, and uncounted.

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
    return seconds - min(EARLIER * seconds, MAX_EARLIER_S)


def _too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"The request body is larger than the limit of {max_bytes / 1e6:g} MB (ingress.max_body_mb).", code="body_too_large"
    )
