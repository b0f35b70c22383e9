"""Score one photo against a running server and draw the answer: `make demo`.

    python -m serve_app.demo [--url http://127.0.0.1:8000] [--image photo.jpg] [--out demo_output]

Without --image it takes the photo that matplotlib installs everywhere (Grace Hopper, public domain).
"""

import argparse
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageOps

from jobs.service_client import base_url
from pipeline.overlay import draw_overlay
from pipeline.types import SegmentedObject

START_TIMEOUT_S = 60.0


def default_photo() -> Path:
    """The photo of Rear Admiral Grace Hopper that comes with matplotlib (public domain)."""
    from matplotlib import cbook

    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def score_photo(url: str, photo: Path, key: str | None = None) -> tuple[list[dict[str, Any]], float]:
    """POST one photo to a server.

    Returns:
        The objects found, as the contract writes them, and the milliseconds the answer took.
    Raises:
        requests.RequestException: no connection or an HTTP error.
    """
    body = {"input_data": {"columns": ["image"], "data": [base64.b64encode(photo.read_bytes()).decode()]}}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    began = time.perf_counter()
    response = requests.post(f"{url}/score", json=body, headers=headers, timeout=60)
    response.raise_for_status()
    return response.json()[0]["boxes"], (time.perf_counter() - began) * 1e3


def to_objects(boxes: list[dict[str, Any]]) -> list[SegmentedObject]:
    """The contract's JSON objects as typed ones."""
    return [
        SegmentedObject(
            box=tuple(entry["box"][key] for key in ("topX", "topY", "bottomX", "bottomY")),
            label=entry["label"],
            score=entry["score"],
            polygon=entry["polygon"],
            holes=entry.get("holes"),
        )
        for entry in boxes
    ]


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if requests.get(f"{url}/ready", timeout=10).ok:
                return
        except requests.RequestException:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"no server is ready at {url}; start one with `make serve` in another terminal")
        time.sleep(0.5)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", type=base_url, default="http://127.0.0.1:8000")
    parser.add_argument("--image", type=Path, help="a photo; default: matplotlib's Grace Hopper")
    parser.add_argument("--key", help="bearer key")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    args = parser.parse_args()
    photo = args.image or default_photo()
    try:
        _wait_until_ready(args.url)
        boxes, took_ms = score_photo(args.url, photo, args.key)
    except (OSError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "response.json").write_text(json.dumps([{"boxes": boxes}], indent=1))
    with Image.open(photo) as image:
        draw_overlay(ImageOps.exif_transpose(image).convert("RGB"), to_objects(boxes)).save(args.out / "overlay.png")
    found = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in boxes) or "nothing"
    print(f"{photo.name}: {found} ({took_ms:.0f} ms)\nwrote {args.out / 'response.json'} and {args.out / 'overlay.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
