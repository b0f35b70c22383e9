"""Predictions by the serving code: the pipeline in this process, or a running service over HTTP.

Both read the photo files as a client would send them, so decoding, scaling, engine, masks (and JSON) are all measured.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from jobs.annotations.datasets import Annotations, AnnotationsError
from jobs.command_line import progress
from jobs.evaluation.coco_results import CocoResults, results_of_image
from jobs.evaluation.predictions import category_ids_of
from jobs.photos import LIMITS
from jobs.scoring.service_client import ServiceClient, ServiceFault
from pipeline.errors import RequestError
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions
from pipeline.masks.encode import instances_to_objects, objects_to_dict
from pipeline.types import DetectOptions, OutlineOptions

MMDET_SCORE_THRESHOLD = 0.05
"""The threshold of mmdet's test configuration; AP needs the low scores too."""
CLIENTS = 4
"""Requests in flight at once."""


def predict_with_engine(
    model: str, options: EngineOptions, annotations: Annotations, white_level: int | None = None
) -> CocoResults:
    """Run the service's own pipeline in this process, photo by photo.

    Args:
        model: embedded or official name, or a path.
        options: engine, precision, threads.
        annotations: whose photos to score.
        white_level: as in DecodeLimits.
    Raises:
        AnnotationsError: model and annotations share no label, or a photo cannot be read.
    """
    truth = annotations.document()
    engine = load_engine(model, options)
    limits = replace(LIMITS, white_level=white_level)
    detect, outline = DetectOptions(score_threshold=MMDET_SCORE_THRESHOLD), OutlineOptions(mask_format="rle")

    def score(name: str) -> dict[str, Any]:
        try:
            loaded = load_image((annotations.images / name).read_bytes(), limits, engine.info.input_size)
        except (RequestError, OSError) as error:
            raise AnnotationsError(f"{name}: {error}") from error
        return objects_to_dict(instances_to_objects(engine.detect([loaded], [detect])[0], engine.info.classes, outline))

    images = progress(truth["images"])
    ids = {engine.info.classes[channel]: number for channel, number in category_ids_of(engine.info.classes, truth).items()}
    answers = ((image, score(image["file_name"])) for image in images)
    return [result for image, answer in answers for result in results_of_image(image["id"], answer["boxes"], ids)]


def predict_with_service(url: str, annotations: Annotations, key: str | None = None) -> CocoResults:
    """Score with a running service, over HTTP, as RLE, at mmdet's threshold; retries if it is busy or fails.

    Args:
        url: base URL, such as http://127.0.0.1:8000.
        annotations: whose photos to score.
        key: bearer key of the service.
    Raises:
        AnnotationsError: service and annotations share no label; or the service does not answer, or refuses a photo.
    """
    truth = annotations.document()
    client = ServiceClient(url, key, deadline_s=120, connections=CLIENTS)
    try:
        classes = tuple(client.info()["classes"])
    except ServiceFault as error:
        raise AnnotationsError(str(error)) from error
    except KeyError as error:
        raise AnnotationsError(f"{client.url}/info names no classes: is it this service?") from error
    ids = {classes[channel]: number for channel, number in category_ids_of(classes, truth).items()}
    params = {"score_threshold": MMDET_SCORE_THRESHOLD, "max_detections": 100, "mask_format": "rle", "decimals": 9}

    def score(image: dict[str, Any]) -> CocoResults:
        photo = annotations.images / image["file_name"]
        try:
            (answer,) = client.score([base64.b64encode(photo.read_bytes()).decode()], params)
        except (ServiceFault, OSError) as error:
            raise AnnotationsError(f"{photo.name}: {error}") from error
        try:
            return results_of_image(image["id"], answer["boxes"], ids)
        except (KeyError, TypeError, ValueError) as error:
            raise AnnotationsError(f"{url} does not answer with masks as run lengths ({error!r}): is it this service?") from error

    pool = ThreadPoolExecutor(CLIENTS)
    try:
        return [result for results in progress(pool.map(score, truth["images"])) for result in results]
    finally:
        pool.shutdown(cancel_futures=True)
