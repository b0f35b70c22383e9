"""The `params` of a request, one type for HTTP and handle calls; checks the number and types of its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InvalidRequest, LimitExceeded, quoted


class ScoreParams(BaseModel):
    """Parameters of one request; None takes the server's default. Validated on construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Keep objects with a score above this.")
    max_detections: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Maximum number of objects per image, highest scores first."
    )
    labels: list[str] | None = Field(None, description="Keep only objects with these class names.")
    polygon_tolerance_px: Annotated[float, Field(ge=0, le=1e4)] | None = Field(
        None, description="Largest distance of the polygon from the mask's edge, pixels of the original image."
    )
    polygon_max_points: Annotated[int, Field(ge=3)] | None = Field(
        None, description="Maximum number of points of one object's polygons, not counting repeated first points."
    )
    decimals: Annotated[int, Field(ge=1, le=17)] | None = Field(None, description="Decimal places of the normalised coordinates.")
    holes: Literal["drop", "rings"] | None = Field(None, description="drop: fill holes. rings: return them in `holes`.")
    closed: bool = Field(True, description="Repeat the first point of each ring at its end, as AzureML does.")
    mask_format: Literal["polygon", "rle"] = Field(
        "polygon", description="rle: return COCO RLE of the exact mask at original size instead of polygons."
    )
    on_error: Literal["fail", "isolate"] = Field(
        "fail", description="fail: a bad image fails the request. isolate: it gets its own error, the others are scored."
    )


def check_image_count(count: int, limit: int) -> None:
    """Raise LimitExceeded `too_many_images` if a request has more images than `limit`."""
    if count > limit:
        message = f"The request has {count} images; the limit is {limit} (ingress.max_images_per_request)."
        raise LimitExceeded(message, code="too_many_images")


def check_images(images: Any) -> None:
    """Raise InvalidRequest unless `images` is a list or tuple of images as Python callers give them (`deployments.task.ImageInput`)."""
    if not isinstance(images, list | tuple):
        raise InvalidRequest(f"'images' must be a list of images, got {type(images).__name__}; put a single image into a list.")
    for index, image in enumerate(images):
        if not isinstance(image, str | bytes | np.ndarray):
            raise InvalidRequest(
                f"'images[{index}]' must be str (base64 or URL), bytes (an image file) or a uint8 array, got {type(image).__name__}."
            )


def parse_params(params: Any, *, as_text: bool = False) -> ScoreParams:
    """Validate the `params` of a request; None or {} takes all defaults.

    Args:
        params: names and values.
        as_text: numbers and booleans are given as text, as in a URL's query.
    Raises:
        InvalidRequest: an unknown key (the message lists the known ones) or a value out of range.
    """
    if params is None:
        return ScoreParams()
    if isinstance(params, ScoreParams):
        return params
    if not isinstance(params, Mapping):
        raise InvalidRequest(f"'params' must be an object, got {type(params).__name__}.")
    unknown = set(params) - set(ScoreParams.model_fields)
    if unknown:
        known = ", ".join(ScoreParams.model_fields)
        raise InvalidRequest(f"'params' has unknown key(s) {quoted(unknown)}; known keys: {known}.")
    try:
        return ScoreParams.model_validate(dict(params), strict=not as_text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
        raise InvalidRequest(f"'params.{location}': {fault['msg']}.") from error
