"""Score images on the cluster that runs the service, by its Ray Serve handle instead of HTTP.

    python -m jobs.score_by_handle photo.jpg https://example.com/other.jpg
    ray job submit --address http://127.0.0.1:8265 -- $PWD/.venv/bin/python -m jobs.score_by_handle $PWD/photo.jpg

Same stages, batches and error codes as over HTTP, but typed results without JSON and base64. Bad images are reported on stderr; the
others are scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.params import ScoreParams, parse_params
from deployments.task import ImageInput
from jobs.command_line import CommandFault, cli_errors, reason_of
from jobs.photos import LIMITS
from jobs.ray_session import connect
from pipeline.errors import DeadlineExceeded, ServiceError, StageFailed
from pipeline.images.decode import decode_image
from pipeline.types import ScoredImage

APPLICATION = "rtmdet-ins"

LONGEST_S = 3600.0
"""No service's own deadline is longer."""
GRACE_S = 5.0
"""Extra time after the deadline, seconds: until then a working service has answered itself."""


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
    timeout_s = min(timeout_s, LONGEST_S)
    response: Any = serve.get_app_handle(application).score.remote(images, params, timeout_s=timeout_s)
    try:
        scored: list[ScoredImage] = response.result(timeout_s=timeout_s + GRACE_S)
        return scored
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ServiceError) else StageFailed("The service failed on this call.") from error
    except ray.exceptions.RayActorError as error:
        raise StageFailed("The Ingress replica died during this call; call again.") from error
    except TimeoutError as error:
        response.cancel()
        raise DeadlineExceeded(f"The service gave no answer within {timeout_s:g} s.") from error


def read_image(argument: str, as_pixels: bool) -> ImageInput:
    """A URL as it is, a file as its bytes or its pixels."""
    if argument.lower().startswith(("http://", "https://")):
        return argument
    if as_pixels:
        return np.ascontiguousarray(decode_image(Path(argument).read_bytes(), LIMITS)[0][..., ::-1])  # BGR to RGB
    return Path(argument).read_bytes()


def readable(names: Sequence[str], as_pixels: bool) -> list[tuple[str, ImageInput]]:
    """The readable images with their names; prints the errors of others to stderr."""
    images = []
    for name in names:
        try:
            images.append((name, read_image(name, as_pixels)))
        except OSError as error:
            print(reason_of(error), file=sys.stderr)
        except ServiceError as error:
            print(f"{name}: {error.code}: {error.message}", file=sys.stderr)
    return images


@cli_errors("jobs.score_by_handle", RayServeException)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if an image, or all of them, could not be scored."""
    parser = argparse.ArgumentParser(prog="python -m jobs.score_by_handle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", help="files or URLs")
    parser.add_argument("--pixels", action="store_true", help="decode files here and send pixels")
    parser.add_argument("--score-threshold", type=float, help="keep scores above this, 0..1 (default: the service's)")
    args = parser.parse_args(argv)
    params = parse_params({"score_threshold": args.score_threshold, "on_error": "isolate"})
    images = readable(args.images, args.pixels)
    if not images:
        return 1
    connect(address="auto", log_to_driver=False)
    try:
        scored = score([image for _, image in images], params)
    except ServiceError as error:
        raise CommandFault(f"{error.code}: {error.message}") from error
    for (name, _), image in zip(images, scored, strict=True):
        if image.fault:
            print(f"{name}: {image.fault.code}: {image.fault.message}", file=sys.stderr)
        elif not image.objects:
            print(f"{name}: no objects")
        for found in image.objects:
            corners = " ".join(f"{value:.3f}" for value in found.box)
            print(f"{name}: {found.label} {found.score:.3f} box {corners}, {len(found.polygon)} outline(s)")
    return int(len(images) < len(args.images) or any(image.fault for image in scored))


if __name__ == "__main__":
    sys.exit(main())
