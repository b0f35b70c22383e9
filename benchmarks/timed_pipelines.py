"""This pipeline and mmdet's, from an encoded photo to JSON bytes, with times by stage.

    ours    load_image ─▶ Engine.detect (network │ post-processing) ─▶ instances_to_json_objects, on all cores ─▶ join_json_objects
    mmdet   cv2.imdecode, mmdet's transforms ─▶ mmdet's network ─▶ mmdet's post-processing, full-size masks
            ─▶ cv2.findContours ─▶ the same rows, the same JSON encoder

Both in this process, without Ray, HTTP or processes in between. What is left to choose on mmdet's side is chosen for speed:
orjson instead of json, masks to contours without a copy, outer contours only, straight runs shortened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.mmdet_reference import MmdetReference, Reference
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import create_engine
from pipeline.inference.engine import Engine, EngineOptions
from pipeline.masks.encode import instances_to_json_objects, join_json_objects, split_instances
from pipeline.model.checkpoints import Checkpoint
from pipeline.types import DetectOptions, Instances, OutlineOptions

STAGES = ("decode", "network", "postprocess", "outline")
"""decode: bytes to the scaled image. network: normalise and infer. postprocess: outputs to masks. outline: masks to JSON."""

Arguments = ParamSpec("Arguments")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answered:
    """One photo's answer.

    Args:
        json: `{"boxes": [...]}`.
        instances: rows in it.
        stages_s: seconds by stage.
        total_s: seconds of the whole.
        cpu_s: processor seconds of all threads; what a busy machine does not change much.
        moved: bytes handed on: `encoded`, `pixels`, `masks`, `json`.
    """

    json: bytes
    instances: int
    stages_s: dict[str, float]
    total_s: float
    cpu_s: float
    moved: dict[str, int]


class Pipeline(Protocol):
    """A contestant."""

    def answer(self, photo: bytes) -> Answered:
        """From encoded photo to JSON."""
        ...


class Clock:
    """Seconds by stage since the last `start`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget what was measured."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self._spent = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, function: Callable[Arguments, T]) -> Callable[Arguments, T]:
        """The function, with its time counted to the stage."""

        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> T:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent[stage] += time.perf_counter() - began

        return run

    def finish(self, json: bytes, instances: int, moved: dict[str, int]) -> Answered:
        """What was measured; time that no stage was told of is the network's."""
        total, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        stages = dict(self._spent)
        stages["network"] += total - sum(stages.values())
        return Answered(json, instances, stages, total, cpu, moved | {"json": len(json)})


class OurPipeline:
    """This project's pipeline, as its deployments call it.

    Args:
        checkpoint: model and weights.
        options: engine and precision.
        detect: threshold and most instances.
    """

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions, detect: DetectOptions) -> None:
        self.engine: Engine = create_engine(checkpoint, options)
        self._detect, self._clock = detect, Clock()
        self._threads = ThreadPoolExecutor(self.engine.info.threads)
        timed_postprocess(self.engine, self._clock)

    def answer(self, photo: bytes) -> Answered:
        """From encoded photo to JSON."""
        clock, info = self._clock, self.engine.info
        clock.start()
        image = clock.timed("decode", load_image)(photo, DecodeLimits(), info.input_size)
        (found,) = self.engine.detect([image], [self._detect])
        rows = clock.timed("outline", self._outline)(found)
        json = clock.timed("outline", join_json_objects)(rows)
        moved = {"encoded": len(photo), "pixels": image.pixels.nbytes, "masks": found.mask_logits.nbytes}
        return clock.finish(json, len(rows), moved)

    def _outline(self, found: Instances) -> list[bytes]:
        """As the Polygonizer does, with as many threads as the engine has."""
        parts = split_instances(found, self.engine.info.threads)
        run = partial(instances_to_json_objects, classes=self.engine.info.classes, options=OutlineOptions())
        return [row for rows in self._threads.map(run, parts) for row in rows]


def timed_postprocess(engine: Any, clock: Clock) -> None:
    """Put the clock into an engine of ours: what `detect` spends outside its post-processing is the network."""
    engine._postprocess = clock.timed("postprocess", engine._postprocess)


class MmdetPipeline:
    """mmdet's `inference_detector` on decoded pixels, then contours of the full-size masks.

    Args:
        checkpoint: model and weights.
        detect: threshold and most instances.
    """

    def __init__(self, checkpoint: Checkpoint, detect: DetectOptions) -> None:
        self._reference: Any = MmdetReference(checkpoint, detect.score_threshold, detect.max_detections)
        self._classes, self._clock = checkpoint.spec.classes, Clock()
        head = self._reference._detector.bbox_head
        head.predict_by_feat = self._clock.timed("postprocess", head.predict_by_feat)
        self._reference._pipeline = self._clock.timed("decode", self._reference._pipeline)

    def answer(self, photo: bytes) -> Answered:
        """From encoded photo to JSON."""
        clock = self._clock
        clock.start()
        bgr = np.asarray(clock.timed("decode", cv2.imdecode)(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        found = self._reference.predict(bgr)
        rows = clock.timed("outline", reference_rows)(found, self._classes)
        json = clock.timed("outline", orjson.dumps)({"boxes": rows})
        return clock.finish(json, len(rows), {"encoded": len(photo), "pixels": bgr.nbytes, "masks": found.masks.nbytes})


def reference_rows(found: Reference, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The contract's rows of mmdet's result: contours of every full-size mask, in fractions of the image."""
    rows = []
    for box, score, label, mask in zip(*found, strict=True):
        size_wh = np.array(mask.shape[::-1])
        if polygon := _contours(mask, size_wh):
            left, top, right, bottom = (box.reshape(2, 2) / size_wh).ravel().tolist()
            corners = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
            rows.append({"box": corners, "label": classes[label], "score": float(score), "polygon": polygon})
    return rows


def _contours(mask: NDArray[np.bool_], size_wh: NDArray[Any]) -> list[list[float]]:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(contour[:, 0] / size_wh).ravel().tolist() for contour in contours if len(contour) >= 3]
