"""Parses bodies of `POST /score` that are image files instead of JSON; `params` come from the query.

    image/jpeg, image/png, …, application/octet-stream ─▶ one photo
    multipart/form-data ─▶ all parts that are files, in order; other fields are params

    curl -F image=@photo.jpg 'http://127.0.0.1:8000/score?score_threshold=0.5'

The answer is the same JSON list, or a picture (`answer_form`). A file's format is detected from its bytes, not from its content type.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deployments.params import ScoreParams, check_image_count, parse_params
from deployments.task import PICTURE_FORMS, AnswerForm
from pipeline.errors import InvalidRequest
from serve_app.contract import ScoreRequest

MULTIPART = "multipart/form-data"
PHOTO_TYPES = frozenset(
    f"image/{name}" for name in "jpeg jpg pjpeg png apng x-png webp tiff bmp x-bmp x-ms-bmp gif avif".split()
) | {"application/octet-stream", "image/*"}
TYPES = f"application/json, {MULTIPART} or an image type such as image/jpeg"
"""For messages."""
PICTURES = frozenset(f"image/{form}" for form in PICTURE_FORMS)
MAX_FIELDS = 32
QUERY_NOT_PARAMS = frozenset({"draw"})
"""Query parameters that are not `params`."""


async def parse_photos(body: bytearray, headers: Headers, query: Iterable[tuple[str, str]], max_images: int) -> ScoreRequest:
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
    photos, fields = await _read_form(body, headers, max_images)
    return ScoreRequest(photos, _params([*given, *fields]))


def answer_form(request: Request, images: int) -> AnswerForm:
    """The form of the answer: JSON, unless `draw=1` in the query or an Accept header with image/png or image/jpeg asks for a picture.

    Raises:
        InvalidRequest: another value of `draw`, or a picture is asked for and the request has not exactly one photo.
    """
    accepted = set(_accepted(",".join(request.headers.getlist("accept"))))
    draw = request.query_params.get("draw")
    if draw not in (None, "0", "1", "false", "true"):
        raise InvalidRequest("'draw' must be 1 or 0.")
    wanted = draw in ("1", "true") or (draw is None and bool(accepted & PICTURES) and "application/json" not in accepted)
    if wanted and images != 1:
        raise InvalidRequest(f"A picture shows one photo; the request has {images}.")
    if not wanted:
        return "json"
    return "jpeg" if "image/jpeg" in accepted and "image/png" not in accepted else "png"


def _accepted(header: str) -> Iterator[str]:
    """The media types of an Accept header, without those of weight 0: "not this one"."""
    for part in header.lower().split(","):
        kind, *parameters = (piece.replace(" ", "") for piece in part.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            yield kind


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class _FormParser(MultiPartParser):
    """Knows whether the form was complete: Starlette's parser drops a last part that was cut off."""

    is_complete = False

    def on_end(self) -> None:
        """Called at the closing boundary."""
        self.is_complete = True


async def _read_form(body: bytearray, headers: Headers, max_images: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield bytes(body)
        if not parser.is_complete:  # raised in here, so that `parse` closes the files it has opened
            raise MultiPartException("it has no closing boundary, so a part of it is missing")

    parser = _FormParser(headers, stream(), max_files=max_images + 1, max_fields=MAX_FIELDS)
    parser.spool_max_size = len(body) + 1  # in memory, never on disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in str(error):
            check_image_count(max_images + 1, max_images)
        raise InvalidRequest(f"The multipart form cannot be parsed: {error.message.rstrip('.')}.") from error
    except ValueError as error:  # some of Python's codecs, such as punycode, raise more than UnicodeDecodeError
        raise InvalidRequest("The multipart form cannot be parsed: a name or value is not in the form's charset.") from error
    photos: list[bytes] = []
    fields: list[tuple[str, str]] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                photos.append(_photo(await value.read(), f"The file of field {name[:40]!r}"))
            else:
                fields.append((name, value))
    finally:
        await form.close()
    if not photos:
        example = "send photos as in: curl -F image=@photo.jpg …/score"
        raise InvalidRequest(f"The multipart form holds no file (a part with a filename); {example}")
    check_image_count(len(photos), max_images)
    return photos, fields


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
