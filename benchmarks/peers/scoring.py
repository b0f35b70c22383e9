"""Shared by all peers except AzureML's loop: the command line, the request, and this pipeline's functions.

    base64 ─▶ load ─▶ LoadedImage ─▶ detect (a batch) ─▶ Instances ─▶ outline ─▶ {"boxes": [...]}

So a race between us and a peer compares how the work is scheduled and moved, not how it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pybase64

from deployments.settings import EMBEDDED_MODEL
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions
from pipeline.masks.encode import instances_to_json_objects, join_json_objects
from pipeline.model.zoo import DEFAULT_CACHE
from pipeline.types import DetectOptions, Instances, LoadedImage, OutlineOptions

SCORE_THRESHOLD = 0.3
MAX_DETECTIONS = 100


class Scorer:
    """The pipeline's three steps in one process.

    Args:
        model: name or path.
        max_batch: most images in one pass of the network.
        threads: of the network.
    """

    def __init__(self, model: str, max_batch: int, threads: int) -> None:
        self._engine = load_engine(model, EngineOptions(threads=threads, max_batch=max_batch, cache_dir=DEFAULT_CACHE))
        self._engine.warm_up()
        self._options = DetectOptions(SCORE_THRESHOLD, MAX_DETECTIONS)

    def load(self, text: str) -> LoadedImage:
        """Base64 to the scaled image."""
        return load_image(pybase64.b64decode(text, validate=True), DecodeLimits(), self._engine.info.input_size)

    def detect(self, images: Sequence[LoadedImage]) -> list[Instances]:
        """Run the network on a batch."""
        return self._engine.detect(images, [self._options] * len(images))

    def outline(self, found: Instances) -> bytes:
        """JSON of one image's result."""
        return join_json_objects(instances_to_json_objects(found, self._engine.info.classes, OutlineOptions()))


def images_in(body: bytes | bytearray | dict[str, Any]) -> list[str]:
    """The base64 texts of a request, as bytes or parsed."""
    document = body if isinstance(body, dict) else orjson.loads(body)
    texts: list[str] = document["input_data"]["data"]
    return texts


def answer(results: Sequence[bytes]) -> bytes:
    """The response body of one request's results."""
    return b"[" + b",".join(results) + b"]"


def arguments(
    doc: str | None, argv: list[str] | None = None, *, workers: int = 2, threads: int = 1, max_batch: int = 4
) -> argparse.Namespace:
    """The command line of a peer; `model` is an absolute path where it is one, because servers change their folder.

    Args:
        workers, threads, max_batch: the defaults. For two cores: a worker of one thread on each is faster than one of two threads in
            every server tried, and eight images on one thread take most of 250 ms.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="name or path (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=max_batch, help="images (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help="of each worker's network (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=workers, help="copies of the network, where the peer has them (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if Path(args.model).is_file():
        args.model = str(Path(args.model).resolve())
    return args
