"""Read a body within limits on type, size (each and total) and time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.requests import Request

from pipeline.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, Overloaded, UnsupportedMediaType

TIMEOUT_HEADER = "x-request-timeout-seconds"
MARGIN, MAX_MARGIN_S = 0.05, 0.5
"""The service answers before the client's deadline: by this share of the timeout, at most MAX_MARGIN_S seconds."""
MAX_SILENCE_S = 10.0
"""A body that sends no byte for this long has stalled."""
MAX_BODIES_ARRIVING = 256
"""Bodies that may be arriving at a time, in addition to those of the images in flight."""

Hold = Callable[[int], None]


class BodyBudget:
    """Bounds the bytes of all bodies that an ingress replica reads or holds.

    Without it, uploads that stall before their end fill the memory before they are admitted as images. A body counts by the bytes
    received, not by its Content-Length: otherwise a few idle clients could block all others. Each body counts `max_bytes / max_bodies`
    from the start, which bounds their number: they must not take all requests that Ray lets into a replica.

    Args:
        max_bytes: of all bodies together.
        max_bodies: at a time.
        largest: body that one caller may always send, if no other does, bytes.
        refusal: makes the error for a request that finds no room.
    """

    def __init__(self, max_bytes: int, max_bodies: int, largest: int, refusal: Callable[[], Overloaded]) -> None:
        self._max_bytes, self._largest = max_bytes, largest
        self._min_share = max_bytes // max_bodies
        self._held: Counter[str] = Counter()
        self._refusal = refusal

    @contextmanager
    def share(self, caller: str, max_share_per_key: float) -> Iterator[Hold]:
        """One request's share of the budget; given back when the context ends.

        Args:
            caller: id of the request's key; empty if there are fewer than two keys.
            max_share_per_key: largest share of the budget for all requests of a key.
        Yields:
            A function that raises the share to a number of bytes.
        Raises:
            Overloaded: there is no room; the yielded function raises it too.
        """
        held = 0
        most = max(int(max_share_per_key * self._max_bytes), self._largest) if caller else self._max_bytes

        def hold(count: int) -> None:
            nonlocal held
            more = max(count - held, 0)
            if more > min(self._max_bytes - self._held.total(), most - self._held[caller]):
                raise self._refusal()
            self._held[caller] += more
            held += more

        hold(self._min_share)
        try:
            yield hold
        finally:
            self._held[caller] -= held


async def read_body(request: Request, max_bytes: int, timeout_s: float, hold: Hold) -> bytearray:
    """Read the body of a request.

    Args:
        request: not read yet.
        max_bytes: largest body.
        timeout_s: longest time for the whole body, seconds.
        hold: counts the bytes against the replica's budget, as they arrive.
    Returns:
        The body's bytes.
    Raises:
        UnsupportedMediaType: the body is compressed.
        LimitExceeded: larger than `max_bytes`; by Content-Length before reading, else as soon as the limit is passed.
        DeadlineExceeded: the body was not complete in time, or no byte came for `MAX_SILENCE_S`.
        Overloaded: from `hold`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding[:80]!r} is not supported: send the body uncompressed, without this header."
        )
    if declared_length(request.headers) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes, hold)
    except TimeoutError as error:
        raise DeadlineExceeded("The request's deadline passed before its body had arrived.") from error


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
        raise DeadlineExceeded(f"No byte of the request's body arrived for {MAX_SILENCE_S:g} s.") from error
    return body


def declared_length(headers: Mapping[str, str]) -> int:
    """The Content-Length; 0 without one."""
    text = headers.get("content-length", "")
    return int(text[:20]) if text.isdecimal() else 0  # int() raises for thousands of digits


def requested_timeout_s(request: Request) -> float | None:
    """The timeout that the client's header asks for, seconds, less a margin; None without the header.

    Ray Serve reads the same header and starts its clock before us. Its own timeout response would carry no request ids and would not be
    counted, so ours must come first: hence the margin.

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
    return seconds - min(MARGIN * seconds, MAX_MARGIN_S)


def _too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"The request body is larger than the limit of {max_bytes / 1e6:g} MB (ingress.max_body_mb).", code="body_too_large"
    )
