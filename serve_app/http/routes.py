"""The HTTP routes of an Ingress replica; the same routes as AzureML's inference server.

POST /score         JSON (serve_app.http.contract), or image files as they are (serve_app.http.photo_body)
GET  /              `Healthy` while this process runs; browsers get the playground (serve_app.http.pages)
GET  /ready         200 after a tiny image went through every stage
GET  /info          model, classes, engine, EXIF orientation, limits
GET  /swagger.json  Swagger 2.0 with AzureML's names; OpenAPI 3.0 with ?version=3
GET  /openapi.json  /docs  /playground
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Security
from fastapi.security import HTTPBearer
from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.ingress import Ingress
from deployments.settings import Settings
from deployments.task import AnswerFormat
from pipeline.errors import InvalidRequest, RequestError, ServiceError, StageFailed, UnsupportedMediaType
from pipeline.images.fetch import MAX_URL_CHARS
from serve_app.http.body import (
    MAX_BODIES_ARRIVING,
    BodyBudget,
    Hold,
    declared_length,
    read_body,
    requested_timeout_s,
)
from serve_app.http.contract import ScoreRequest, parse_score_request
from serve_app.http.guard import ID_HEADERS, MODEL_ERROR_HEADER, RequestGuard
from serve_app.http.openapi import SCORE_ROUTE_DOCS
from serve_app.http.pages import Asset, add_pages, wants_page
from serve_app.http.photo_body import MULTIPART, PHOTO_TYPES, TYPES, check_drawable, media_type, parse_photos, requested_format
from serve_app.http.responses import check_answer_size, error_response, picture_response, score_response
from serve_app.http.swagger import swagger_document
from serve_app.keys import KeyRing

logger = logging.getLogger("ray.serve")

KEY = Security(HTTPBearer(scheme_name="bearer", auto_error=False, description="A key, if the service is configured with keys."))
"""Only for the API documentation: `serve_app.http.guard` checks the key before routing."""
DESCRIPTION = """Send photos, get objects with boxes, labels, scores and polygons.

`curl -F image=@photo.jpg http://…/score` scores a photo file; `application/json` is AzureML's contract. Errors are JSON with a `code`
and a `message`. Every response has an `x-request-id` header; `server-timing` shows the time of each stage."""
CORS_RESPONSE_HEADERS = ["retry-after", "server-timing", "x-ms-run-fn-exec-ms", MODEL_ERROR_HEADER, *ID_HEADERS]
LARGE_BODY_BYTES = 1_000_000
"""Larger bodies are parsed on a thread: they would block the other requests of this replica for milliseconds."""
JSON = "application/json"
SCORE = ("POST", "/score")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a closed connection; only the access log shows it."""

Route = Callable[[Request], Awaitable[Response]]


def http_app(ingress: Ingress, settings: Settings) -> ASGIApp:
    """The ASGI application of one ingress replica."""
    app = FastAPI(
        title="RTMDet-Ins scoring service",
        version=service_version(),
        description=DESCRIPTION,
        docs_url=None,  # serve_app.http.pages serves it, without assets from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to the host in the caller's Host header
    )
    auth = settings.ingress.auth
    keys = KeyRing(auth.keys_env, auth.keys_file)
    _add_probes(app, ingress, add_pages(app))
    _add_info(app, ingress)
    score = _add_score(app, ingress, settings)
    _add_error_responses(app)
    guard = RequestGuard(
        _bypass_fastapi(app, score),
        keys,
        int(2e6 * settings.ingress.max_body_mb),
        ingress.errors_counted,
        settings.ingress.azureml_status_codes,
    )
    return _with_cors(guard, settings.ingress.cors_origins)


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Allow these origins to call from browsers. This is the outermost layer: preflight requests carry no key and must pass before the
    check."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # as AzureML's: its clients send azureml-model-deployment and others, which are ignored here
        expose_headers=CORS_RESPONSE_HEADERS,
    )


def service_version() -> str:
    """The installed version of this project, or `dev` if it is not installed."""
    try:
        return version("rtmdet-ins-serve")
    except PackageNotFoundError:
        return "dev"


def _bypass_fastapi(app: ASGIApp, score: Route) -> ASGIApp:
    """Call the function of `POST /score` directly, without FastAPI's middlewares and routing: saves 0.25 ms of CPU per request.

    A traced request takes the usual way, because FastAPI creates its span.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        is_score = scope["type"] == "http" and (scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))) == SCORE
        if not is_score or trace.get_current_span().is_recording():
            await app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await score(request)
        except ClientDisconnect as error:
            response = await _client_gone(request, error)
        await response(scope, receive, send)

    return call


def _add_score(app: FastAPI, ingress: Ingress, settings: Settings) -> Route:
    """Add the route of `POST /score`; returns its function."""
    limits = settings.ingress
    budget = BodyBudget(
        int(limits.max_bodies_mb * 1e6),
        limits.max_images_in_flight + limits.max_urls + MAX_BODIES_ARRIVING,
        int(2e6 * limits.max_body_mb),  # image files count twice
        ingress.refusal,
    )

    @app.post("/score", dependencies=[KEY], **SCORE_ROUTE_DOCS)
    async def score(request: Request) -> Response:
        """Segment the images of a request."""
        with ExitStack() as held:
            with ingress.errors_counted(request.state.caller):  # score_images counts its own
                hold = held.enter_context(budget.share(request.state.caller, ingress.settings.ingress.max_share_per_key))
                context = ingress.context(requested_timeout_s(request), request.state.request_id, request.state.caller)
                answer_format = requested_format(request)
                scoring = await _read_request(request, answer_format, ingress, context.remaining_s, hold)
                if scoring.draw:  # a field of a form
                    answer_format = requested_format(request, scoring.draw)
                check_drawable(answer_format, len(scoring.images))
            began = time.perf_counter()
            answers = await ingress.score_images(scoring.images, scoring.params, context, answer_format=answer_format)
            with ingress.errors_counted(request.state.caller):
                check_answer_size(answers, ingress.settings.ingress.max_answer_mb)
        respond = score_response if answer_format == "json" else picture_response
        return respond(answers, (time.perf_counter() - began) * 1e3)

    return score


async def _read_request(
    request: Request, answer_format: AnswerFormat, ingress: Ingress, timeout_s: float, hold: Hold
) -> ScoreRequest:
    """Read and parse a request. The result holds the images; no reference to the body is kept."""
    kind, limits = media_type(request.headers), ingress.settings.ingress
    if kind not in (JSON, MULTIPART, *PHOTO_TYPES):
        raise UnsupportedMediaType(f"Content-Type must be {TYPES}, got {repr(kind[:80]) if kind else 'none'}.")
    may_be_urls = kind == JSON and declared_length(request.headers) <= limits.max_images_per_request * MAX_URL_CHARS
    # URLs, and photos to draw on, have room of their own, which is checked when they are admitted.
    if answer_format == "json" and not may_be_urls:
        ingress.check_room(request.state.caller)
    body = await read_body(request, int(limits.max_body_mb * 1e6), timeout_s, hold)
    if kind == JSON:
        parse = partial(parse_score_request, body)
    else:
        hold(2 * len(body))  # the photos are copied out of it
        query = request.query_params.multi_items()
        parse = partial(parse_photos, body, request.headers, query, limits.max_images_per_request)
    return await asyncio.to_thread(parse) if len(body) > LARGE_BODY_BYTES else parse()


def _add_probes(app: FastAPI, ingress: Ingress, page: Asset) -> None:
    async def liveness(request: Request) -> Response:
        """200 while this process runs; browsers get the playground."""
        return page.response(request) if wants_page(request) else PlainTextResponse("Healthy", headers={"vary": "accept"})

    async def readiness() -> Response:
        """200 if every stage could score a tiny image; else 503 with the reason."""
        try:
            await ingress.check_ready()
        except ServiceError as error:
            return _json({"status": "not ready", "code": error.code, "message": error.message}, 503)
        return _json({"status": "ready"})

    for path, probe, response_class in (("/", liveness, PlainTextResponse), ("/ready", readiness, JSONResponse)):
        # The first route also answers HEAD, which some load balancers send; the second is for the API documentation.
        app.add_api_route(path, probe, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_api_route(path, probe, response_class=response_class, tags=["health"])


def _add_info(app: FastAPI, ingress: Ingress) -> None:
    async def info() -> Response:
        """The model, its classes, the engine, whether photos are rotated by their EXIF orientation, and the limits."""
        model = await ingress.model_info()
        settings = ingress.settings
        rotates = {"exif_orientation": settings.image_loader.exif_orientation}
        return _json({"version": service_version(), **model.as_dict(), **rotates, "limits": _limits(settings)})

    async def swagger(version: str = "2") -> Response:
        return _json(swagger_document(version, service_version()))

    for path, route in (("/info", info), ("/swagger.json", swagger)):
        app.add_api_route(path, route, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/info", info, tags=["model"], dependencies=[KEY])  # for the API documentation, as in _add_probes


def _limits(settings: Settings) -> dict[str, Any]:
    ingress, loader, detector = settings.ingress, settings.image_loader, settings.detector
    return {
        "timeout_s": ingress.timeout_s,
        "max_body_mb": ingress.max_body_mb,
        "max_answer_mb": ingress.max_answer_mb,
        "max_images_per_request": ingress.max_images_per_request,
        "max_image_mb": loader.max_image_mb,
        "max_megapixels": loader.max_megapixels,
        "max_megapixels_unscaled": loader.max_megapixels_unscaled,
        "max_detections": detector.max_detections,
        "default_score_threshold": detector.score_threshold,
    }


def _add_error_responses(app: FastAPI) -> None:
    async def handle_error(_: Request, error: Exception) -> Response:
        return error_response(error if isinstance(error, ServiceError) else StageFailed("The service failed on this request."))

    async def handle_routing_error(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        if status == 404:
            return error_response(RequestError("There is no such route; /docs lists them.", code="not_found", status=404))
        if status == 405:
            allowed = ", ".join(sorted((getattr(error, "headers", None) or {}).get("Allow", "").split(", ")))
            message = f"This route takes {allowed}, not {request.method[:40]}; /docs lists the routes."
            response = error_response(RequestError(message, code="method_not_allowed", status=405))
            response.headers["allow"] = allowed
            return response
        return error_response(InvalidRequest("The request could not be read.", status=status))

    app.add_exception_handler(ServiceError, handle_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, handle_error)  # unexpected: answered here, then logged by the guard
    app.add_exception_handler(HTTPException, handle_routing_error)


async def _client_gone(request: Request, _: Exception) -> Response:
    logger.info("request %s: the client closed the connection before its body had arrived", request.state.request_id)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type=JSON)
