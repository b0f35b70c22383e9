"""ASGI middleware around all routes: request ids, keys, response headers, refused uploads, unexpected errors.

Plain ASGI instead of Starlette's BaseHTTPMiddleware: it costs microseconds.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import HeaderTooLarge, InvalidRequest, ServiceError, StageFailed
from serve_app.http.body import declared_length
from serve_app.http.pages import OPEN_PREFIXES
from serve_app.http.responses import error_response
from serve_app.keys import KeyRing

logger = logging.getLogger("ray.serve")

MAX_REQUEST_ID_CHARS = 100
ID_HEADERS = ("x-ms-request-id", "x-ms-client-request-id", "x-request-id")
"""Headers with a caller's request id; the first one present becomes the id in logs and responses. x-request-id comes last, because HAProxy
and Ray Serve add one to every request without it."""
MODEL_ERROR_STATUS = 424
"""Status of an AzureML managed endpoint for requests that its model refused."""
AZUREML_STATUS = {400: MODEL_ERROR_STATUS, 415: MODEL_ERROR_STATUS, 422: MODEL_ERROR_STATUS, 503: 429}
"""Our status codes and those of an AzureML managed endpoint, where they differ."""
MODEL_ERROR_HEADER = "ms-azureml-model-error-statuscode"
"""The original status of a 424, in the header that the managed endpoint uses."""
OPEN_PATHS = frozenset({"/", "/ready", "/docs", "/playground", "/openapi.json", "/swagger.json"})
"""Paths without keys: health probes send none, nor do browsers that open the documentation, which is public in the source anyway."""
BODILESS_PATHS = frozenset({"/ready", "/info"})
"""Routes that wait for the stages and read no body. Ray would buffer a body in memory meanwhile (measured: 0.75 GB in 4 s), so it is
refused."""


class RequestGuard:
    """ASGI middleware: checks id and key before a route sees the request; logs unexpected errors of a route (the client gets a 500).

    Args:
        app: the routes.
        keys: the keys that are accepted.
        max_rest_bytes: bytes of a refused body that are read and discarded, for clients that read the response only after sending. If the
            body is longer, the connection is closed after the response: Ray Serve's proxy would read all of it (measured: 0.8 GB/s, one
            core).
        errors_counted: a context that counts the errors raised within.
        azureml_status: use the status codes of AzureML's managed endpoints on /score.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        max_rest_bytes: int,
        errors_counted: Callable[[], AbstractContextManager[None]],
        azureml_status: bool = False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_rest_bytes = max_rest_bytes
        self._errors_counted = errors_counted
        self._azureml_status = azureml_status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = next(filter(None, map(headers.get, ID_HEADERS)), None) or str(uuid.uuid4())
        body = _Body(receive, self._is_long(headers))
        prefix = scope.get("root_path", "")
        if scope["path"] == prefix:
            scope["path"] += "/"
        path = scope["path"].removeprefix(prefix)
        ids = {"x-ms-request-id": request_id, "x-ms-client-request-id": headers.get("x-ms-client-request-id")}
        response = _Response(send, ids, body, AZUREML_STATUS if self._azureml_status and path == "/score" else {})
        try:
            with self._errors_counted():
                caller = self._check_headers(path, headers)
            scope.setdefault("state", {}).update(request_id=request_id, caller=caller)
            await self._app(scope, body.receive, response.send)
        except ServiceError as error:
            await error_response(error)(scope, body.receive, response.send)
        except Exception:
            logger.exception("request %s failed with an unexpected error", request_id)
            if not response.begun:
                await error_response(StageFailed("The service failed on this request."))(scope, body.receive, response.send)

    def _is_long(self, headers: Headers) -> bool:
        return "transfer-encoding" in headers or declared_length(headers) > self._max_rest_bytes

    def _check_headers(self, path: str, headers: Headers) -> str:
        """Check ids, key and body length of a request; returns the id of its caller."""
        caller = ""
        for name in ID_HEADERS:
            if len(headers.get(name, "")) > MAX_REQUEST_ID_CHARS:
                raise HeaderTooLarge(f"Header {name} is longer than {MAX_REQUEST_ID_CHARS} characters.")
        if path not in OPEN_PATHS and not path.startswith(OPEN_PREFIXES):
            caller = self._keys.check(headers.get("authorization"))
        if path in BODILESS_PATHS and ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            raise InvalidRequest(f"{path} takes no body.")
        return caller


class _Body:
    """A request's body; `is_arriving` while a long one is not complete."""

    def __init__(self, receive: Receive, is_long: bool) -> None:
        self._receive = receive
        self.is_arriving = is_long

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.is_arriving = False
        return message


class _Response:
    """Adds the id and timing headers to a response (Ray Serve's proxy adds x-request-id).

    Args:
        ids: header and value; None is left out.
        body: of the request.
        status: status codes to replace, and their replacements.
    """

    def __init__(self, send: Send, ids: Mapping[str, str | None], body: _Body, status: Mapping[int, int]) -> None:
        self._send = send
        self._body = body
        self._ids = {name: value[:MAX_REQUEST_ID_CHARS] for name, value in ids.items() if value}
        self._status = status
        self._began = time.perf_counter()
        self.begun = False

    async def send(self, message: Message | dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(self._ids)
            headers["x-ms-run-fn-exec-ms"] = f"{(time.perf_counter() - self._began) * 1e3:.2f}"
            if self._body.is_arriving:
                headers["connection"] = "close"
            if (status := self._status.get(message["status"])) is not None:
                if status == MODEL_ERROR_STATUS:
                    headers[MODEL_ERROR_HEADER] = str(message["status"])
                message["status"] = status
            message["headers"] = headers.raw
        await self._send(message)
