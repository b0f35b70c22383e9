"""A layer inside Ray Serve's own HTTP front, so that its refusals speak the contract too: in each Ingress replica where HAProxy stands in
front, in Ray's proxy where it does not.

Ray Serve answers some requests itself, in plain text: a timeout (408), a full queue (503), an application that is not
deployed (404, 503), a replica that died (500, or nothing at all). Set
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.proxy:middlewares` where Ray starts (ray.env does) and they
become the contract's JSON. Without it everything works, only these answers stay Ray's.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestError, ServiceError, StageFailed
from serve_app.answers import error_response

FIRST_ERROR_STATUS = 400

KEPT = frozenset({"x-request-id", "retry-after"})
"""Headers of a replaced answer that stay."""

READ_BY_RAY = frozenset(
    "x-request-id x-request-timeout-seconds x-request-disconnect-disabled x-session-id serve-multiplexed-model-id traceparent".split()
)
"""Headers that Ray Serve decodes as UTF-8, some with _ for -, with a plain 500 for what is not."""


class JsonErrors:
    """ASGI layer: an error that is not JSON is replaced by the contract's form, an answer that never came by a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in Headers(scope=scope).items():
            if not value.isascii() and name.replace("_", "-") in READ_BY_RAY:
                await error_response(InvalidRequest(f"Header {name} must be ASCII."))(scope, receive, send)
                return
        answered = replaced = False

        async def send_json(message: Message) -> None:
            nonlocal answered, replaced
            if message["type"] == "http.response.start":
                answered = True
                replaced = _is_foreign_error(message)
                if replaced:
                    answer = error_response(_error_of(message["status"]))
                    answer.headers.update(
                        {name: value for name, value in Headers(raw=message.get("headers", [])).items() if name in KEPT}
                    )
                    await answer(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, send_json)
        if not answered:
            await error_response(StageFailed("The service lost the replica that worked on this request."))(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy asks for."""
    return [Middleware(JsonErrors)]


def _is_foreign_error(start: Message) -> bool:
    content_type = Headers(raw=start.get("headers", [])).get("content-type", "")
    return start["status"] >= FIRST_ERROR_STATUS and not content_type.startswith("application/json")


def _error_of(status: int) -> ServiceError:
    if status == DeadlineExceeded.status:
        return DeadlineExceeded("The request's deadline passed before its images were scored.")
    if status in (429, 503):
        return Overloaded("The service is not ready or at its limit; try again later.", status=status)
    if status < 500:
        return RequestError("The request could not be answered.", code="not_found" if status == 404 else None, status=status)
    return StageFailed("The service failed on this request.")
