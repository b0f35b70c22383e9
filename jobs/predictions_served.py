"""Predictions by the code that serves: the pipeline in this process, or a running service over HTTP.

Both read the photo files as a client would send them, so decoding, scaling, engine, masks (and JSON) are all measured.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from jobs.datasets import Annotations, AnnotationsError
from jobs.predictions import CocoResults, category_ids_of
from pipeline.decode import DecodeLimits
from pipeline.engines import EngineOptions, load_engine
from pipeline.load import load_image
from pipeline.objects import instances_to_objects, objects_to_dict
from pipeline.types import DetectOptions, OutlineOptions

Progress = Callable[[Iterable[Any]], Iterable[Any]]
MMDET_SCORE_THRESHOLD = 0.05
"""The threshold of mmdet's test configuration; AP needs the low scores too."""


def predict_with_engine(model: str, options: EngineOptions, annotations: Annotations, progress: Progress = iter) -> CocoResults:
    """Run the service's own pipeline in this process, photo by photo.

    Args:
        model: embedded or official name, or a path.
        options: engine, precision, threads.
        annotations: whose photos to score.
        progress: wraps the photos to show how far it is, such as `tqdm`.
    """
    truth = json.loads(annotations.coco_json.read_text())
    engine = load_engine(model, options)
    detect, outline = DetectOptions(score_threshold=MMDET_SCORE_THRESHOLD), OutlineOptions(mask_format="rle")

    def score(photo: bytes) -> dict[str, Any]:
        loaded = load_image(photo, DecodeLimits(), engine.info.input_size)
        return objects_to_dict(instances_to_objects(engine.detect([loaded], [detect])[0], engine.info.classes, outline))

    images = progress(truth["images"])
    ids = {engine.info.classes[channel]: number for channel, number in category_ids_of(engine.info.classes, truth).items()}
    answers = ((image, score((annotations.images / image["file_name"]).read_bytes())) for image in images)
    return [result for image, answer in answers for result in _to_coco(image["id"], answer["boxes"], ids)]


def predict_with_service(url: str, annotations: Annotations, progress: Progress = iter, clients: int = 4) -> CocoResults:
    """Ask a running service, over HTTP, in RLE, at mmdet's threshold.

    Args:
        url: base URL, such as http://127.0.0.1:8000.
        annotations: whose photos to score.
        progress: wraps the photos to show how far it is, such as `tqdm`.
        clients: requests under way at once.
    Raises:
        AnnotationsError: the service does not answer, or refuses a photo; the message is the service's own.
    """
    truth = json.loads(annotations.coco_json.read_text())
    ids = {category["name"]: category["id"] for category in truth["categories"]}

    def score(image: dict[str, Any]) -> CocoResults:
        boxes = _post(url, annotations.images / image["file_name"])
        return _to_coco(image["id"], boxes, ids)

    with ThreadPoolExecutor(clients) as pool:
        return [result for results in progress(pool.map(score, truth["images"])) for result in results]


def _post(url: str, photo: Path) -> list[dict[str, Any]]:
    body = {
        "input_data": {"columns": ["image"], "data": [base64.b64encode(photo.read_bytes()).decode()]},
        "params": {"score_threshold": MMDET_SCORE_THRESHOLD, "max_detections": 100, "mask_format": "rle", "decimals": 9},
    }
    try:
        response = requests.post(f"{url}/score", json=body, timeout=120)
    except requests.RequestException as error:
        raise AnnotationsError(f"{url} does not answer: {error}") from error
    if not response.ok:
        raise AnnotationsError(f"{photo.name}: the service answered {response.status_code}: {response.text[:300]}")
    return response.json()[0]["boxes"]


def _to_coco(image_id: int, boxes: list[dict[str, Any]], category_ids: dict[str, int]) -> CocoResults:
    """The contract's objects (with RLE) as COCO results; labels that the annotations do not know are left out."""
    results = []
    for found in boxes:
        if found["label"] not in category_ids:
            continue
        height, width = found["rle"]["size"]
        box = found["box"]
        x1, y1, x2, y2 = box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[found["label"]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": found["score"],
                "segmentation": found["rle"],
            }
        )
    return results
