"""AzureML's scorer: one image at a time with mmdet, masks at original size, cv2.findContours, json, behind gunicorn.

    python -m benchmarks.peers.azure_loop --port 9001

Flask behind gunicorn with one synchronous worker, which is what azureml-inference-server-http starts by default. mmdet runs in
torch, float32, on all of --threads. --max-batch has no meaning here: this scorer never batches.
"""

from __future__ import annotations

import argparse
import base64
import json
from typing import Any

import cv2
import numpy as np
import torch
from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication

from benchmarks.mmdet_reference import MmdetReference
from benchmarks.peers.scoring import MAX_DETECTIONS, SCORE_THRESHOLD, arguments
from benchmarks.timed_pipelines import reference_rows
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate

WORKER_TIMEOUT_S = 300


def create_app(model: str, threads: int) -> Flask:
    """The scoring application with its model loaded."""
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(locate(model))
    mmdet, classes = MmdetReference(checkpoint, SCORE_THRESHOLD, MAX_DETECTIONS), checkpoint.spec.classes
    app = Flask(__name__)

    @app.post("/score")
    def score() -> Response:
        answers = []
        for text in request.get_json()["input_data"]["data"]:
            encoded = np.frombuffer(base64.b64decode(text), np.uint8)
            bgr = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
            answers.append({"boxes": reference_rows(mmdet.predict(bgr), classes)})
        return Response(json.dumps(answers), mimetype="application/json")

    return app


class Server(BaseApplication):
    """gunicorn without a configuration file; the model is loaded in the worker, after the fork."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings."""
        options: dict[str, Any] = {
            "bind": f"127.0.0.1:{self._args.port}",
            "workers": 1,
            "worker_class": "sync",
            "timeout": WORKER_TIMEOUT_S,
            "control_socket_disable": True,  # it would be left in the home folder
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The application of a worker."""
        return create_app(self._args.model, self._args.threads)


if __name__ == "__main__":
    Server(arguments(__doc__, workers=1, threads=2)).run()
