"""The data that is sent from stage to stage: one ImageTask per image. Each stage replaces its payload.

ImageInput ─▶ ImageLoader ─▶ LoadedImage ─▶ Detector ─▶ Instances ─▶ Polygonizer ─▶ Answer
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DeadlineExceeded, ServiceError
from pipeline.images.source import is_url
from pipeline.types import DetectOptions, OutlineOptions

Payload = TypeVar("Payload")
Result = TypeVar("Result")

ImageInput = str | bytes | NDArray[np.uint8]
"""An image from a caller: base64 text or URL, encoded bytes, or pixels: (H, W, 3) uint8 RGB or (H, W) uint8 grey."""
AnswerFormat = Literal["objects", "json", "png", "jpeg"]
"""Format of the answer for an image: ScoredImage, EncodedImage, or DrawnImage as PNG or JPEG."""
PICTURE_FORMATS = ("png", "jpeg")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request's identity and deadline.

    Args:
        request_id: written on every log line about this request.
        deadline: time after which the caller no longer waits, seconds as `time.time()`. The clocks of the nodes must agree (NTP).
        caller: id of the request's key; empty if there are fewer than two keys.
    """

    request_id: str
    deadline: float
    caller: str = ""

    @property
    def remaining_s(self) -> float:
        """Seconds left, negative when the deadline has passed."""
        return self.deadline - time.time()

    def check(self, stage: str) -> None:
        """Raise DeadlineExceeded when no time is left for `stage`."""
        if self.remaining_s <= 0:
            raise DeadlineExceeded(f"The request's deadline passed before the {stage} stage began.")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a request asks for, with the server's defaults filled in.

    Args:
        detect: which instances are kept; its `labels` are set by the Detector.
        outline: how their masks are encoded.
        labels: class names to keep; None keeps all. Names, because during an update the Detector may have another model.
        isolate: a bad image gets its own error instead of failing the request.
        answer_format: ScoredImage, JSON or a picture.
    """

    detect: DetectOptions
    outline: OutlineOptions
    labels: frozenset[str] | None = None
    isolate: bool = False
    answer_format: AnswerFormat = "objects"

    @property
    def draws(self) -> bool:
        """Whether the answer is a picture."""
        return self.answer_format in PICTURE_FORMATS


@dataclass(frozen=True, slots=True)
class ImageTask(Generic[Payload]):
    """One image on its way through the stages.

    Args:
        payload: input of the next stage, or the error of an earlier one, which later stages pass on.
        options: of its request.
        context: of its request.
        timings_ms: times so far by stage, milliseconds.
        canvas: (H, W, 3) uint8 BGR pixels to draw on, only if the answer is a picture; may be scaled down.
        classes: label names of the model that the Detector ran; empty before it. During an update, later stages may have another model.
        large: it was admitted as a large image, and may be decoded at full size.
    """

    payload: Payload | ServiceError
    options: ScoreOptions
    context: RequestContext
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    canvas: NDArray[np.uint8] | None = None
    classes: tuple[str, ...] = ()
    large: bool = False

    @property
    def queue_key(self) -> str:
        """Key of the image in a stage's fair queues. A caller's large images have a key of their own, so they do not delay its others."""
        return f"{self.context.caller}/large" if self.large else self.context.caller

    @property
    def may_take_long(self) -> bool:
        """Whether an ImageLoader may need many seconds for it: it is large, or a URL, whose host may be slow."""
        return self.large or is_url(self.payload)

    def after(self, payload: Result | ServiceError, timings_ms: Mapping[str, float]) -> ImageTask[Result]:
        """The task after a stage: with the stage's result or error, and the times so far."""
        return ImageTask(payload, self.options, self.context, timings_ms, self.canvas, self.classes, self.large)
