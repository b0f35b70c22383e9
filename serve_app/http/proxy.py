"""Middleware for Ray Serve's HTTP server: converts Ray's own errors to JSON; limits headers and unsent responses.

It runs in each Ingress replica with HAProxy, in Ray's proxy without.

Ray Serve answers some requests itself, in plain text: a timeout (408), a full queue (503), an application that is not deployed (404,
503), a replica that died (500, or no response). To turn these into JSON, set
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.http.proxy:middlewares` where Ray starts (ray.env does). Without it the service
works, but these responses stay plain text, the URL and headers may be as large as Ray's server or HAProxy takes them, the headers in
NOT_FOR_RAY have an effect, unsent responses are not bounded, and clients that do not read theirs are not disconnected.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import DeadlineExceeded, HeaderTooLarge, InvalidRequest, Overloaded, RequestError, ServiceError, StageFailed
from serve_app.http.responses import error_response

logger = logging.getLogger("ray.serve")

FIRST_ERROR_STATUS = 400

KEPT = frozenset({"x-request-id", "retry-after"})
"""Headers that a replaced response keeps."""

READ_BY_RAY = frozenset({"x-request-id", "x-request-timeout-seconds", "traceparent", "tracestate"})
"""Headers that Ray Serve decodes as UTF-8; it fails with a plain 500 if they are not."""

NOT_FOR_RAY = frozenset({"x-request-disconnect-disabled", "x-session-id", "serve-multiplexed-model-id"})
"""Headers by which a client would turn off that its work ends when it hangs up, or influence which replica gets it. They are removed, also
with _ for -, as Ray Serve reads them."""

MAX_HEAD_BYTES = 32_768
"""Most bytes of the URL and all headers. HAProxy takes 256 KiB of them (ray.env); reading lists as long as that blocks an Ingress for a
quarter of a second."""

PIECE_BYTES = 2**18
MAX_WRITE_S = 10.0
"""If a client does not take the next piece of its response within this time, its connection is closed."""
MAX_UNSENT_BYTES = 256_000_000
"""Unsent bytes of all responses of this process; beyond it, those of more than one piece are replaced by a 503. Ray Serve keeps a whole
response in memory until its client has read it."""


class JsonErrors:
    """ASGI middleware: replaces errors that are not JSON by the contract's JSON, and a missing response by a 500, also after an
    exception, which the server would answer in plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._unsent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            refused = RequestError("There are no WebSocket routes; /docs lists the routes.", code="not_found", status=404)
            await error_response(refused)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (fault := _fault_of_head(scope)) is not None:
            refusal = error_response(fault)
            refusal.headers["connection"] = "close"  # else the server would read the body, however long
            await refusal(scope, receive, send)
            return
        scope["headers"] = [header for header in scope["headers"] if _hyphened(header[0]) not in NOT_FOR_RAY]
        begun = replaced = False
        unsent = _Unsent(self)

        async def send_json(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start":
                begun = True
                error = _replacement_of(message) or unsent.announce(message)
                replaced = error is not None
                if error is not None:
                    response = error_response(error)
                    response.headers.update(
                        {name: value for name, value in Headers(raw=message.get("headers", [])).items() if name in KEPT}
                    )
                    await response(scope, receive, send)
            if not replaced:
                for piece in _pieces(message):
                    async with asyncio.timeout(MAX_WRITE_S):
                        await send(piece)

        try:
            await self._app(scope, receive, send_json)
        except Exception as error:
            if not begun:
                logger.exception("a request failed in Ray Serve before its response began")
            elif isinstance(error, TimeoutError):
                logger.warning("a client read nothing of its response for %g s: its connection is closed", MAX_WRITE_S)
            else:
                raise
        finally:
            unsent.forget()
        if not begun:
            await error_response(StageFailed("The replica that worked on this request died."))(scope, receive, send)


def middlewares() -> list[Middleware]:
    """The middlewares for Ray Serve; called by Ray, see the module's docstring."""
    return [Middleware(JsonErrors)]


class _Unsent:
    """The unsent bytes of one response, counted in the total of its JsonErrors layer."""

    def __init__(self, layer: JsonErrors) -> None:
        self._layer, self._bytes = layer, 0

    def announce(self, start: Message) -> ServiceError | None:
        """Count the bytes of a response that begins; returns the error to send instead if there is no room for them."""
        length = Headers(raw=start.get("headers", [])).get("content-length", "0")
        count = int(length) if length.isdecimal() else 0
        if count > PIECE_BYTES and self._layer._unsent + count > MAX_UNSENT_BYTES:
            return Overloaded("Too many responses wait for slow clients; try again later.")
        self._bytes = count
        self._layer._unsent += count
        return None

    def forget(self) -> None:
        """Stop counting: the response is sent or given up."""
        self._layer._unsent -= self._bytes


def _fault_of_head(scope: Scope) -> ServiceError | None:
    """The error to answer with, if the URL and headers are too large, or Ray would fail on them."""
    url = scope.get("raw_path", b""), scope.get("query_string", b"")
    size = sum(map(len, itertools.chain(url, *scope["headers"])))
    if size > MAX_HEAD_BYTES:
        return HeaderTooLarge(f"The URL and headers have {size} bytes; the limit is {MAX_HEAD_BYTES}.")
    for name, value in scope["headers"]:
        if not value.isascii() and name.decode("latin-1") in READ_BY_RAY:
            return InvalidRequest(f"Header {name.decode('latin-1')} must be ASCII.")
    return None


def _hyphened(name: bytes) -> str:
    return name.decode("latin-1").replace("_", "-")


def _pieces(message: Message) -> Iterator[Message]:
    """Split a message with a long body into several, so that the server waits for the client between them."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
        yield message
        return
    for start in range(0, len(body), PIECE_BYTES):
        more = message.get("more_body", False) or start + PIECE_BYTES < len(body)
        yield {"type": message["type"], "body": body[start : start + PIECE_BYTES], "more_body": more}


def _replacement_of(start: Message) -> ServiceError | None:
    """The error to send instead, if the response is an error that is not JSON."""
    content_type = Headers(raw=start.get("headers", [])).get("content-type", "")
    foreign = start["status"] >= FIRST_ERROR_STATUS and not content_type.startswith("application/json")
    return _error_of(start["status"]) if foreign else None


def _error_of(status: int) -> ServiceError:
    if status == DeadlineExceeded.status:
        return DeadlineExceeded("The request's deadline passed before its images were scored.")
    if status in (429, 503):
        return Overloaded("The service is not ready or at its limit; try again later.", status=status)
    if status < 500:
        return RequestError("The request cannot be answered.", code="not_found" if status == 404 else None, status=status)
    return StageFailed("The service failed on this request.")
