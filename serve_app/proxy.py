"""A layer inside Ray Serve's own HTTP front: in each Ingress replica where HAProxy stands in front, in Ray's proxy where it does not. Its
refusals speak the contract too, and clients that do not read their answers cannot fill the memory.

Ray Serve answers some requests itself, in plain text: a timeout (408), a full queue (503), an application that is not
deployed (404, 503), a replica that died (500, or nothing at all). Set
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy:middlewares` where Ray starts (ray.env does) and they
become the contract's JSON. Without it everything works, only these answers stay Ray's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestError, ServiceError, StageFailed
from serve_app.answers import error_response

logger = logging.getLogger("ray.serve")

FIRST_ERROR_STATUS = 400

KEPT = frozenset({"x-request-id", "retry-after"})
"""Headers of a replaced answer that stay."""

READ_BY_RAY = frozenset(
    "x-request-id x-request-timeout-seconds x-request-disconnect-disabled x-session-id serve-multiplexed-model-id traceparent".split()
)
"""Headers that Ray Serve decodes as UTF-8, some with _ for -, with a plain 500 for what is not."""


PIECE_BYTES = 2**18
MAX_WRITE_S = 10.0
"""A client that takes no piece of its answer for so long has stalled, and loses its connection."""
MAX_UNSENT_BYTES = 256_000_000
"""Of all answers of this process together; beyond it answers are refused. Between a route and this layer Ray Serve keeps all of an answer
in memory, however slowly its client reads."""


class JsonErrors:
    """ASGI layer: an error that is not JSON is replaced by the contract's form, an answer that never came by a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._unsent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in Headers(scope=scope).items():
            if not value.isascii() and name.replace("_", "-") in READ_BY_RAY:
                await error_response(InvalidRequest(f"Header {name} must be ASCII."))(scope, receive, send)
                return
        answered = replaced = False
        unsent = _Unsent(self)

        async def send_json(message: Message) -> None:
            nonlocal answered, replaced
            if message["type"] == "http.response.start":
                answered = True
                error = _replacement_of(message) or unsent.announce(message)
                replaced = error is not None
                if error is not None:
                    answer = error_response(error)
                    answer.headers.update(
                        {name: value for name, value in Headers(raw=message.get("headers", [])).items() if name in KEPT}
                    )
                    await answer(scope, receive, send)
            if not replaced:
                for piece in _pieces(message):
                    async with asyncio.timeout(MAX_WRITE_S):
                        await send(piece)

        try:
            await self._app(scope, receive, send_json)
        except TimeoutError:
            if not answered:
                raise
            logger.warning("a client took nothing of its answer for %g s: its connection is closed", MAX_WRITE_S)
            return
        finally:
            unsent.forget()
        if not answered:
            await error_response(StageFailed("The service lost the replica that worked on this request."))(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy asks for."""
    return [Middleware(JsonErrors)]


class _Unsent:
    """One answer's bytes among those that a layer holds."""

    def __init__(self, layer: JsonErrors) -> None:
        self._layer, self._bytes = layer, 0

    def announce(self, start: Message) -> ServiceError | None:
        """An answer begins: count its bytes until it is sent or given up, or say why there is no room for them."""
        length = Headers(raw=start.get("headers", [])).get("content-length", "0")
        count = int(length) if length.isdecimal() else 0
        if self._layer._unsent + count > MAX_UNSENT_BYTES:
            return Overloaded("Too many answers wait for clients that read slowly; try again later.")
        self._bytes = count
        self._layer._unsent += count
        return None

    def forget(self) -> None:
        """The answer is sent, or given up."""
        self._layer._unsent -= self._bytes


def _pieces(message: Message) -> Iterator[Message]:
    """A message whose body is long as several, so that the server waits for the client in between."""
    body = message.get("body", b"")
    if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
        yield message
        return
    for start in range(0, len(body), PIECE_BYTES):
        more = message.get("more_body", False) or start + PIECE_BYTES < len(body)
        yield {"type": message["type"], "body": body[start : start + PIECE_BYTES], "more_body": more}


def _replacement_of(start: Message) -> ServiceError | None:
    """The error in the contract's form, where the answer is one that is not."""
    content_type = Headers(raw=start.get("headers", [])).get("content-type", "")
    foreign = start["status"] >= FIRST_ERROR_STATUS and not content_type.startswith("application/json")
    return _error_of(start["status"]) if foreign else None


def _error_of(status: int) -> ServiceError:
    if status == DeadlineExceeded.status:
        return DeadlineExceeded("The request's deadline passed before its images were scored.")
    if status in (429, 503):
        return Overloaded("The service is not ready or at its limit; try again later.", status=status)
    if status < 500:
        return RequestError("The request could not be answered.", code="not_found" if status == 404 else None, status=status)
    return StageFailed("The service failed on this request.")
