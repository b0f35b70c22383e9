"""HTTP responses: the images' JSON joined without encoding it again, errors as JSON, timing headers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence

import orjson
from starlette.responses import Response

from pipeline.errors import ImageFault, LimitExceeded, Overloaded, ServiceError, Unauthorized
from pipeline.types import Answer, DrawnImage, EncodedImage

TIMINGS = ("wait", "fetch", "decode", "queue", "detect", "polygonize", "encode")
"""Names of the `server-timing` entries, in the order an image passes them. `queue` is the wait in the Detector's batcher. `wait` is all
other waiting: for a group, for the calls between the stages, and in the stages' queues."""
LESS = (
    "Make it smaller with the params decimals, polygon_tolerance_px, polygon_max_points, score_threshold or max_detections, or send "
    "fewer images."
)
SMALLER_PICTURE = "Ask for image/jpeg instead of image/png."


def score_response(answers: Sequence[Answer | ImageFault], took_ms: float) -> Response:
    """The 200 response: a JSON list with one object for each image, in order, and a `server-timing` header.

    Args:
        answers: one for each image of the request.
        took_ms: time from the request's admission to its last answer, milliseconds.
    """
    began = time.perf_counter()
    body = b"[" + b",".join(_image_json(answer) for answer in answers) + b"]"
    timings_ms = _timings_ms(answers, took_ms) | {"encode": (time.perf_counter() - began) * 1e3}
    return Response(body, media_type="application/json", headers={"server-timing": _server_timing(timings_ms)})


def check_answer_size(answers: Sequence[Answer | ImageFault], max_mb: float) -> None:
    """Raise LimitExceeded `answer_too_large` if the answer to a request is larger than `max_mb` MB (1e6 bytes)."""
    pictures = sum(len(answer.data) for answer in answers if isinstance(answer, DrawnImage)) / 1e6
    size_mb = pictures + sum(len(answer.json) for answer in answers if isinstance(answer, EncodedImage)) / 1e6
    if size_mb > max_mb:
        raise LimitExceeded(
            f"The answer has {size_mb:.1f} MB; the limit is {max_mb:g} MB (ingress.max_answer_mb). {SMALLER_PICTURE if pictures else LESS}",
            code="answer_too_large",
        )


def picture_response(answers: Sequence[Answer | ImageFault], took_ms: float) -> Response:
    """The 200 response with a picture of the request's only image; `took_ms` as in `score_response`."""
    (picture,) = answers
    if not isinstance(picture, DrawnImage):
        raise TypeError(f"expected a picture, got {type(picture).__name__}")
    headers = {"server-timing": _server_timing(_timings_ms(answers, took_ms)), "vary": "accept"}
    return Response(picture.data, media_type=picture.media_type, headers=headers)


def _timings_ms(answers: Sequence[Answer | ImageFault], took_ms: float) -> dict[str, float]:
    worked_ms = max((sum(answer.timings_ms.values()) for answer in answers if not isinstance(answer, ImageFault)), default=0.0)
    return _slowest_ms(answers) | {"wait": max(took_ms - worked_ms, 0.0)}


def _slowest_ms(answers: Iterable[Answer | ImageFault]) -> dict[str, float]:
    """For each part the time of its slowest image, milliseconds: the images of one request run side by side."""
    slowest: dict[str, float] = {}
    for answer in answers:
        if not isinstance(answer, ImageFault):
            for part, ms in answer.timings_ms.items():
                slowest[part] = max(ms, slowest.get(part, 0.0))
    return slowest


def _server_timing(timings_ms: Mapping[str, float]) -> str:
    """The Server-Timing header (W3C Server Timing), durations in milliseconds."""
    return ", ".join(f"{part};dur={timings_ms.get(part, 0.0):.2f}" for part in TIMINGS)


def error_response(error: ServiceError) -> Response:
    """The response to a failed request: {"message", "code"}, and `errors` with the images' own errors if there are any."""
    document: dict[str, object] = {"message": error.message, "code": error.code}
    if error.faults:
        document["errors"] = [{"index": fault.index, "code": fault.code, "message": fault.message} for fault in error.faults]
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(_as_json(document), status_code=error.status, media_type="application/json", headers=headers)


def _image_json(answer: Answer | ImageFault) -> bytes:
    if isinstance(answer, EncodedImage):
        return answer.json
    if not isinstance(answer, ImageFault):
        raise TypeError(f"expected an encoded answer, got {type(answer).__name__}")
    return _as_json({"boxes": [], "error": {"code": answer.code, "message": answer.message}})


def _as_json(document: Mapping[str, object]) -> bytes:
    """JSON of any text: messages quote names from callers and other servers; what UTF-8 cannot express (lone surrogates) becomes `?`."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return json.dumps(document, ensure_ascii=False).encode(errors="replace")
