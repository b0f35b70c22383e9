"""What a caller may ask for beyond the images: one type for the HTTP body's `params` and for handle calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InvalidRequest, LimitExceeded, quoted


class ScoreParams(BaseModel):
    """What one request asks for beyond its images; None takes the server's default. Checked when made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Keep scores above this.")
    max_detections: Annotated[int, Field(ge=1, le=100)] | None = Field(None, description="Most objects an image.")
    labels: list[str] | None = Field(None, description="Class names to keep.")
    polygon_tolerance_px: Annotated[float, Field(ge=0, le=1e4)] | None = Field(
        None, description="Largest distance of the outline from the mask edge, original pixels."
    )
    polygon_max_points: Annotated[int, Field(ge=3)] | None = Field(
        None, description="Most vertices of one object's outline, repeated first points not counted."
    )
    decimals: Annotated[int, Field(ge=1, le=17)] | None = Field(None, description="Digits of the normalised coordinates.")
    holes: Literal["drop", "rings"] | None = Field(None, description="rings: give holes beside the polygon.")
    closed: bool = Field(True, description="Rings repeat their first point at the end, as AzureML's; false saves its bytes.")
    mask_format: Literal["polygon", "rle"] = Field("polygon", description="rle: COCO RLE of the exact mask at original size.")
    on_error: Literal["fail", "isolate"] = Field(
        "fail", description="isolate: a bad image gives its own error, the rest is scored."
    )


def check_image_count(count: int, most: int) -> None:
    """Raise LimitExceeded `too_many_images` where a request has more images than `most`."""
    if count > most:
        message = f"The request has {count} images; the limit is {most} (ingress.max_images_per_request)."
        raise LimitExceeded(message, code="too_many_images")


def parse_params(params: Any, *, as_text: bool = False) -> ScoreParams:
    """Check the `params` of a request; None or {} is all defaults.

    Args:
        params: names and values.
        as_text: numbers and booleans are written as text, as in a URL's query.
    Raises:
        InvalidRequest: an unknown key (the known ones are listed) or a value out of range.
    """
    if params is None:
        return ScoreParams()
    if isinstance(params, ScoreParams):
        return params
    if not isinstance(params, dict):
        raise InvalidRequest(f"'params' must be an object, got {type(params).__name__}.")
    unknown = set(params) - set(ScoreParams.model_fields)
    if unknown:
        known = ", ".join(ScoreParams.model_fields)
        raise InvalidRequest(f"'params' has unknown key(s) {quoted(unknown)}; known keys: {known}.")
    try:
        return ScoreParams.model_validate(params, strict=not as_text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
        raise InvalidRequest(f"'params.{place}': {fault['msg']}.") from error
