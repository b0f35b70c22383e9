"""Score images from Python, on the cluster that runs the service: the handle instead of HTTP.

    python -m jobs.score_by_handle photo.jpg https://example.com/other.jpg
    ray job submit --address http://127.0.0.1:8265 -- python -m jobs.score_by_handle photo.jpg

The same stages, batches and error codes as over HTTP; no JSON, no base64, typed results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import ray
from ray import serve

from deployments.image_loader import ImageInput
from deployments.params import ScoreParams
from pipeline.decode import DecodeLimits, decode_image
from pipeline.errors import DeadlineExceeded, ServiceError, StageFailed
from pipeline.types import ScoredImage

APPLICATION = "rtmdet-ins"

GRACE_S = 5.0
"""So much after its deadline the service has said so itself, if it lives."""


def score(
    images: list[ImageInput], params: ScoreParams | None = None, *, application: str = APPLICATION, timeout_s: float = 30.0
) -> list[ScoredImage]:
    """Score images through the running application; Ray must be connected to its cluster.

    Args:
        images: each a URL or base64 (str), an encoded file (bytes), or (H, W, 3) uint8 RGB pixels.
        params: thresholds and formats; None takes the server's defaults.
        application: name of the application in serve_config.yaml.
        timeout_s: deadline from now; the server's own, where that is shorter.
    Raises:
        ServiceError: the same codes as over HTTP.
    """
    response = serve.get_app_handle(application).score.remote(images, params, timeout_s=timeout_s)
    try:
        return response.result(timeout_s=timeout_s + GRACE_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ServiceError) else StageFailed("The service failed on this call.") from error
    except ray.exceptions.RayActorError as error:
        raise StageFailed("The Ingress that held this call died with it; call again.") from error
    except TimeoutError as error:
        response.cancel()
        raise DeadlineExceeded(f"The service gave no answer within {timeout_s:g} s.") from error


def read_image(argument: str, as_pixels: bool) -> ImageInput:
    """A URL as it is, a file as its bytes or its pixels."""
    if argument.lower().startswith(("http://", "https://")):
        return argument
    if as_pixels:
        return np.ascontiguousarray(decode_image(Path(argument).read_bytes(), DecodeLimits())[0][..., ::-1])  # BGR to RGB
    return Path(argument).read_bytes()


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.score_by_handle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", help="files or URLs")
    parser.add_argument("--pixels", action="store_true", help="decode files here and send pixels")
    parser.add_argument("--score-threshold", type=float, default=None)
    args = parser.parse_args()
    ray.init(address="auto", log_to_driver=False)
    try:
        scored = score(
            [read_image(argument, args.pixels) for argument in args.images], ScoreParams(score_threshold=args.score_threshold)
        )
    except ServiceError as error:
        for fault in error.faults:
            print(f"{args.images[fault.index]}: {fault.code}: {fault.message}", file=sys.stderr)
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    for name, image in zip(args.images, scored, strict=True):
        for found in image.objects:
            corners = " ".join(f"{value:.3f}" for value in found.box)
            print(f"{name}: {found.label} {found.score:.3f} box {corners}, {len(found.polygon)} outline(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
