"""Parses bodies of `POST /score` that are image files instead of JSON; `params` come from the query.

    image/jpeg, image/png, …, application/octet-stream ─▶ one photo
    multipart/form-data ─▶ all parts that are files, in order; other fields are params (serve_app.http.form)

    curl -F image=@photo.jpg 'http://127.0.0.1:8000/score?score_threshold=0.5'

The answer is the same JSON list, or a picture (`requested_format`). A file's format is detected from its bytes, not from its content type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
MEDIA_TYPES: dict[AnswerFormat, str] = {"json": "application/json", "png": "image/png", "jpeg": "image/jpeg"}
"""Of the answer; the first of those that a client likes equally is sent."""
DRAW = "draw"
"""The query parameter, or field of a form, that is not one of the `params`."""
DRAW_VALUES = {"1": True, "true": True, "0": False, "false": False}
ANYTHING = ("*/*", "application/*")
"""Media ranges that JSON is in. Java's HttpURLConnection sends `text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2` if its caller sets
nothing, so a picture beside one of them is no wish for pictures."""
_WEIGHT = re.compile(r"q=(0(?:\.\d*)?|1(?:\.0*)?)")


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
    if media_type(headers) != MULTIPART:
        return ScoreRequest([_photo(bytes(body), "The request body")], _params(query))
    files, fields = parse_form(body, headers["content-type"], max_images)
    if not files:
        example = "send photos as in: curl -F image=@photo.jpg …/score"
        raise InvalidRequest(f"The multipart form holds no file (a part with a filename); {example}")
    photos = [_photo(data, f"The file of field {name[:40]!r}") for name, data in files]
    draw = tuple(value for name, value in fields if name == DRAW)
    return ScoreRequest(photos, _params([*query, *fields]), draw)


def requested_format(request: Request, fields: Iterable[str] = ()) -> AnswerFormat:
    """The format of the answer: a picture or JSON as `draw` says, else what the Accept header prefers, else JSON. JSON, too, if the header
    accepts anything.

    Args:
        fields: the values of `draw` in a form; that of the query counts, too.
    Raises:
        InvalidRequest: another value of `draw`, or several.
    """
    given = [*request.query_params.getlist(DRAW), *fields]
    if len(given) > 1:
        raise InvalidRequest("'draw' is given twice.")
    draw = [DRAW_VALUES.get(value.lower()) for value in given]
    if None in draw:
        raise InvalidRequest("'draw' must be 1 or 0.")
    weights = _weights(",".join(request.headers.getlist("accept")))
    if draw == [False] or (not draw and any(weights.get(kind) for kind in ANYTHING)):
        return "json"
    formats = [kind for kind in MEDIA_TYPES if kind in PICTURE_FORMATS or not draw]
    return max(formats, key=lambda kind: weights.get(MEDIA_TYPES[kind], 0.0))


def check_drawable(file_format: AnswerFormat, images: int) -> None:
    """Raise InvalidRequest if a picture is asked for and the request has not exactly one photo."""
    if file_format in PICTURE_FORMATS and images != 1:
        raise InvalidRequest(f"A picture shows one photo; the request has {images}.")


def _weights(header: str) -> dict[str, float]:
    """The media types of an Accept header with their weights; one of weight 0 is not wanted."""
    weights = {}
    for part in header.lower().split(","):
        kind, *parameters = (piece.replace(" ", "") for piece in part.split(";"))
        given = [match[1] for match in map(_WEIGHT.fullmatch, parameters) if match]
        weights[kind] = float(given[0]) if given else 1.0
    return weights


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
        if name == DRAW:
            continue
        if name == "labels":
            params.setdefault(name, []).append(value)
        elif name in params:
            raise InvalidRequest(f"'params.{name}' is given twice.")
        else:
            params[name] = value
    return parse_params(params, as_text=True)
