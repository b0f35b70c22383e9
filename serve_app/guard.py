"""What surrounds every route: request ids, keys, answer headers, the end of refused uploads, and the log of our own bugs.

A plain ASGI layer around the routes, so that it costs microseconds.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import HeaderTooLarge, InvalidRequest, ServiceError, StageFailed
from serve_app.answers import error_response
from serve_app.keys import KeyRing

logger = logging.getLogger("ray.serve")

MAX_REQUEST_ID_CHARS = 100
OPEN_PATHS = frozenset({"/", "/ready", "/docs", "/openapi.json", "/swagger.json"})
"""Health probes carry no keys, nor do browsers that look at the documents, which tell no more than the source does."""
BODILESS_PATHS = frozenset({"/ready", "/info"})
"""Routes that wait for the stages and read no body: Ray would hold all that comes meanwhile in memory (measured: 0.75 GB in 4 s)."""


class RequestGuard:
    """ASGI layer: checks id and key before a route sees the request; logs a route that failed unforeseen (it has answered 500).

    Args:
        app: the routes.
        keys: who may enter.
        max_rest_bytes: of a refused body, as much is still read and thrown away, so that a client that looks for its answer
            only after sending finds one. The connection of a longer or endless body is closed with the answer: Ray Serve's
            proxy would go on reading it (measured: 0.8 GB/s, a whole core) for as long as it comes.
        errors_counted: a context that counts the errors raised within.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, max_rest_bytes: int, errors_counted: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_rest_bytes = max_rest_bytes
        self._errors_counted = errors_counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id") or str(uuid.uuid4())
        body = _Body(receive, self._is_long(headers))
        answer = _Answer(send, request_id, body)
        try:
            prefix = scope.get("root_path", "")
            if scope["path"] == prefix:
                scope["path"] += "/"
            with self._errors_counted():
                self._admit(scope["path"].removeprefix(prefix), headers, request_id)
            scope.setdefault("state", {})["request_id"] = request_id
            await self._app(scope, body.receive, answer.send)
        except ServiceError as error:
            await error_response(error)(scope, body.receive, answer.send)
        except Exception:
            logger.exception("request %s failed on a bug", request_id)
            if not answer.begun:
                await error_response(StageFailed("The service failed on this request."))(scope, body.receive, answer.send)

    def _is_long(self, headers: Headers) -> bool:
        length = headers.get("content-length", "")
        return "transfer-encoding" in headers or (length.isdecimal() and int(length[:20]) > self._max_rest_bytes)

    def _admit(self, path: str, headers: Headers, request_id: str) -> None:
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise HeaderTooLarge(f"Header x-request-id is longer than {MAX_REQUEST_ID_CHARS} characters.")
        if path not in OPEN_PATHS:
            self._keys.check(headers.get("authorization"))
        if path in BODILESS_PATHS and ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            raise InvalidRequest(f"{path} takes no body.")


class _Body:
    """A request's body on its way in: knows whether a long one is still coming."""

    def __init__(self, receive: Receive, is_long: bool) -> None:
        self._receive = receive
        self.keeps_coming = is_long

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.keeps_coming = False
        return message


class _Answer:
    """Adds the id and timing headers to an answer on its way out (x-request-id is added by Ray Serve's proxy)."""

    def __init__(self, send: Send, request_id: str, body: _Body) -> None:
        self._send = send
        self._body = body
        self._request_id = request_id[:MAX_REQUEST_ID_CHARS]
        self._began = time.perf_counter()
        self.begun = False

    async def send(self, message: Message | dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["x-ms-request-id"] = self._request_id
            headers["x-ms-run-fn-exec-ms"] = f"{(time.perf_counter() - self._began) * 1e3:.2f}"
            if self._body.keeps_coming:
                headers["connection"] = "close"
            message["headers"] = headers.raw
        await self._send(message)
