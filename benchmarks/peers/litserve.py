"""LitServe: decode_request, batch, predict, unbatch, encode_response in its worker, batches of --max-batch within 5 ms.

    python -m benchmarks.peers.litserve --port 9003

LitServe batches requests, not images: one request is one item of a batch, so only requests of a single image are answered, others
with 422. One process takes the requests, --workers score them; requests wait in LitServe's queue without a limit of its own.
(LitServe reads the annotations as types, hence no `from __future__ import annotations`.)
"""

from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import HTTPException, Response

from benchmarks.peers.scoring import Scorer, answer, arguments, images_in
from pipeline.types import Instances, LoadedImage

BATCH_TIMEOUT_S = 0.005


class Detector(litserve.LitAPI):
    """One image a request.

    Args:
        model, threads: of the network.
        max_batch: most requests in a batch.
    """

    def __init__(self, model: str, max_batch: int, threads: int) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=BATCH_TIMEOUT_S, api_path="/score")
        self._model, self._max_batch, self._threads = model, max_batch, threads

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's signature)
        """Load the model, in the worker process."""
        self._scorer = Scorer(self._model, self._max_batch, self._threads)

    def decode_request(self, request: dict[str, Any]) -> LoadedImage:
        """The request's only image."""
        texts = images_in(request)
        if len(texts) != 1:
            raise HTTPException(422, "one image a request")
        return self._scorer.load(texts[0])

    def batch(self, inputs: Sequence[LoadedImage]) -> list[LoadedImage]:
        """As they are: the engine stacks them."""
        return list(inputs)

    def predict(self, images: list[LoadedImage]) -> list[Instances]:
        """The network."""
        return self._scorer.detect(images)

    def unbatch(self, output: list[Instances]) -> list[Instances]:
        """One result a request."""
        return output

    def encode_response(self, output: Instances) -> Response:
        """The response body."""
        return Response(answer([self._scorer.outline(output)]), media_type="application/json")


if __name__ == "__main__":
    args = arguments(__doc__)
    server = litserve.LitServer(
        Detector(args.model, args.max_batch, args.threads), accelerator="cpu", workers_per_device=args.workers, timeout=300
    )
    server.run(host="127.0.0.1", port=args.port, num_api_servers=1, generate_client_file=False, log_level="warning")
