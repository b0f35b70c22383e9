"""OpenAPI description of POST /score. FastAPI cannot derive it: we read the body ourselves, to apply limits first."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from deployments.params import ScoreParams
from serve_app.http.body import TIMEOUT_HEADER
from serve_app.http.contract import ScoreBody


class Box(BaseModel):
    """A box in fractions of the image's width and height."""

    topX: float = Field(ge=0, le=1)  # noqa: N815 (AzureML's names)
    topY: float = Field(ge=0, le=1)  # noqa: N815
    bottomX: float = Field(ge=0, le=1)  # noqa: N815
    bottomY: float = Field(ge=0, le=1)  # noqa: N815


class Rle(BaseModel):
    """COCO run-length encoding at original size, readable by pycocotools."""

    size: list[int] = Field(description="[height, width]")
    counts: str


class DetectedObject(BaseModel):
    """One object; `holes` and `rle` only if the request asks for them."""

    box: Box
    label: str
    score: float
    polygon: list[list[float]] = Field(description="Outer rings x1 y1 x2 y2 … x1 y1, fractions, largest first.")
    holes: list[list[float]] | None = None
    rle: Rle | None = None


class Fault(BaseModel):
    """Why one image could not be scored."""

    code: str
    message: str


class ImageAnswer(BaseModel):
    """The answer for one image; `error` only with on_error = isolate."""

    boxes: list[DetectedObject]
    error: Fault | None = None


class IndexedFault(Fault):
    """A fault with the position of its image in the request."""

    index: int


class ErrorAnswer(BaseModel):
    """Body of every response that is not 200."""

    message: str
    code: str
    errors: list[IndexedFault] | None = None


_ERRORS = {
    400: "The body does not follow the contract; the message names the place.",
    401: "The bearer key is missing or wrong.",
    408: "The request's deadline passed.",
    413: "The body, an image's bytes or pixels, the number of images or the answer is over a limit.",
    415: "The content type is neither JSON nor a form nor an image, or the body is compressed.",
    424: "With ingress.azureml_status_codes: instead of 400, 415 and 422.",
    422: "An image cannot be decoded, or its URL is refused or could not be fetched.",
    429: "The service is at its limit (or 503, as configured); see Retry-After.",
    431: "The URL and headers, or a request id, are too long.",
    500: "The service failed.",
    503: "The service is at its limit; see Retry-After.",
}

SCORE_EXAMPLE = {
    "input_data": {"columns": ["image"], "index": [0], "data": ["https://example.com/photo.jpg"]},
    "params": {"score_threshold": 0.5},
}


def _body_schema() -> dict[str, Any]:
    """The body's schema with its definitions inlined where they are used (OpenAPI has no `$defs` in a request body)."""
    schema = ScoreBody.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _query() -> list[dict[str, Any]]:
    """The `params` as query parameters, for bodies that are image files."""
    properties = ScoreParams.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{schema.pop('description', '')} Only for bodies that are not JSON.".strip(),
            "schema": {key: value for key, value in schema.items() if key != "title"},
        }
        for name, schema in properties.items()
    ]


_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "array", "items": _FILE, "description": "Photos."}},
}

SCORE_ROUTE_DOCS: dict[str, Any] = {
    "tags": ["score"],
    "response_model": list[ImageAnswer],
    "responses": {
        200: {"content": {"image/png": {"schema": _FILE}, "image/jpeg": {"schema": _FILE}}},
        **{status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()},
    },
    "openapi_extra": {
        "security": [{}],  # FastAPI adds the bearer key; {} says that it is optional: the service may have no keys
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _body_schema(), "example": SCORE_EXAMPLE},
                "image/jpeg": {"schema": _FILE},
                "multipart/form-data": {"schema": _FORM},
            },
        },
        "parameters": [
            *_query(),
            {
                "name": "draw",
                "in": "query",
                "required": False,
                "schema": {"type": "boolean"},
                "description": "1: answer with a picture of the result, as Accept: image/png or image/jpeg does; one photo only.",
            },
            {
                "name": TIMEOUT_HEADER,
                "in": "header",
                "required": False,
                "schema": {"type": "number", "exclusiveMinimum": 0},
                "description": "Deadline of this request, seconds.",
            },
        ],
    },
}
"""Arguments of the route decorator."""
