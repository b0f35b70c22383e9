"""Parses bodies of `POST /score` that are image files instead of JSON; `params` come from the query.

    image/jpeg, image/png, …, application/octet-stream ─▶ one photo
    multipart/form-data ─▶ all parts that are files, in order; other fields are params (serve_app.http.form)

    curl -F image=@photo.jpg 'http://127.0.0.1:8000/score?score_threshold=0.5'

The answer is the same JSON list, or a picture (`requested_format`). A file's format is detected from its bytes, not from its content type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import Request

from deployments.params import ScoreParams, parse_params
from deployments.task import PICTURE_FORMATS, AnswerFormat
from pipeline.errors import InvalidRequest
from serve_app.http.contract import ScoreRequest
from serve_app.http.form import parse_form

MULTIPART = "multipart/form-data"
PHOTO_TYPES = frozenset(
    f"image/{name}" for name in "jpeg jpg pjpeg png apng x-png webp tiff bmp x-bmp x-ms-bmp gif avif".split()
) | {"application/octet-stream", "image/*"}
TYPES = f"application/json, {MULTIPART} or an image type such as image/jpeg"
"""For messages."""
PICTURES = frozenset(f"image/{file_format}" for file_format in PICTURE_FORMATS)
QUERY_NOT_PARAMS = frozenset({"draw"})
"""Query parameters that are not `params`."""


def parse_photos(body: bytearray, headers: Mapping[str, str], query: Iterable[tuple[str, str]], max_images: int) -> ScoreRequest:
    """Read the photos and params of a body that is not JSON.

    Args:
        body: as received.
        headers: their content type is one of PHOTO_TYPES or MULTIPART.
        query: names and values from the URL.
        max_images: most photos in one request (setting ingress.max_images_per_request).
    Raises:
        InvalidRequest: no photo, a form that cannot be parsed, or unknown params.
        LimitExceeded: too many photos.
    """
    given = [(name, value) for name, value in query if name not in QUERY_NOT_PARAMS]
    if media_type(headers) != MULTIPART:
        return ScoreRequest([_photo(bytes(body), "The request body")], _params(given))
    files, fields = parse_form(body, headers["content-type"], max_images)
    if not files:
        example = "send photos as in: curl -F image=@photo.jpg …/score"
        raise InvalidRequest(f"The multipart form holds no file (a part with a filename); {example}")
    photos = [_photo(data, f"The file of field {name[:40]!r}") for name, data in files]
    return ScoreRequest(photos, _params([*given, *fields]))


def requested_format(request: Request) -> AnswerFormat:
    """The format of the answer: JSON, unless `draw=1` in the query or an Accept header with image/png or image/jpeg asks for a picture.

    Raises:
        InvalidRequest: another value of `draw`.
    """
    accepted = set(_accepted(",".join(request.headers.getlist("accept"))))
    draw = request.query_params.get("draw")
    if draw not in (None, "0", "1", "false", "true"):
        raise InvalidRequest("'draw' must be 1 or 0.")
    wanted = draw in ("1", "true") or (draw is None and bool(accepted & PICTURES) and "application/json" not in accepted)
    if not wanted:
        return "json"
    return "jpeg" if "image/jpeg" in accepted and "image/png" not in accepted else "png"


def check_drawable(file_format: AnswerFormat, images: int) -> None:
    """Raise InvalidRequest if a picture is asked for and the request has not exactly one photo."""
    if file_format in PICTURE_FORMATS and images != 1:
        raise InvalidRequest(f"A picture shows one photo; the request has {images}.")


def _accepted(header: str) -> Iterator[str]:
    """The media types of an Accept header, without those of weight 0: "not this one"."""
    for part in header.lower().split(","):
        kind, *parameters = (piece.replace(" ", "") for piece in part.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            yield kind


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _photo(data: bytes, what: str) -> bytes:
    if not data:
        raise InvalidRequest(f"{what} is empty; expected an image file.")
    return data


def _params(given: Iterable[tuple[str, str]]) -> ScoreParams:
    """Parse params given as text; only `labels` may be repeated."""
    params: dict[str, Any] = {}
    for name, value in given:
        if name == "labels":
            params.setdefault(name, []).append(value)
        elif name in params:
            raise InvalidRequest(f"'params.{name}' is given twice.")
        else:
            params[name] = value
    return parse_params(params, as_text=True)
