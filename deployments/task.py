"""What travels from stage to stage: for each image one ImageTask. The stages replace its payload; everything else stays.

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
from pipeline.types import DetectOptions, OutlineOptions

Payload = TypeVar("Payload")
Result = TypeVar("Result")

ImageInput = str | bytes | NDArray[np.uint8]
"""An image as callers give it: base64 text or URL, encoded bytes, or (H, W, 3) uint8 RGB / (H, W) grey pixels."""


AnswerForm = Literal["objects", "json", "png", "jpeg"]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request's identity and deadline.

    Args:
        request_id: written on every log line about this request.
        deadline: time.time() seconds after which the answer is of no use. Nodes of a cluster must agree on the
            time to well within the timeout (NTP does).
        caller: id of the key that it came with; empty where there are no keys to tell apart.
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
        detect: which instances are kept.
        outline: how their masks are written.
        isolate: a bad image gets an error of its own instead of failing the request.
        answer_as: ScoredImage, EncodedImage, or DrawnImage as PNG or JPEG.
    """

    detect: DetectOptions
    outline: OutlineOptions
    isolate: bool = False
    answer_as: AnswerForm = "objects"

    @property
    def draws(self) -> bool:
        """Whether the answer is a picture."""
        return self.answer_as in ("png", "jpeg")


@dataclass(frozen=True, slots=True)
class ImageTask(Generic[Payload]):
    """One image on its way through the stages.

    Args:
        payload: the image in the form that the next stage takes, or the error that ended it: later stages hand that on untouched.
        options: of its request.
        context: of its request.
        timings_ms: milliseconds by stage so far.
        photo: (H, W, 3) uint8 BGR, to draw on, only where the answer is a picture; at most the image's own size.
        alone: it is sent in calls of its own, so that it may take its time.
    """

    payload: Payload | ServiceError
    options: ScoreOptions
    context: RequestContext
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    photo: NDArray[np.uint8] | None = None
    alone: bool = False

    def after(self, payload: Result | ServiceError, timings_ms: Mapping[str, float]) -> ImageTask[Result]:
        """The task after a stage: with that stage's result, or error, and its timings added."""
        return ImageTask(payload, self.options, self.context, {**self.timings_ms, **timings_ms}, self.photo, self.alone)
