"""Score one photo against a running server and draw the answer: `make demo`.

    python -m jobs.demo [--url http://127.0.0.1:8000] [--image photo.jpg] [--key-env NAME] [--out demo_output]

Without --image it uses an example photo of the playground or, if that is missing, one that comes with matplotlib (Grace Hopper).
"""

import argparse
import base64
import json
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from jobs.command_line import CommandFault, cli_errors
from jobs.photos import read_photo
from jobs.scoring.service_client import base_url, bearer, key_from, what_it_said
from pipeline.masks.draw import draw_overlay
from pipeline.masks.encode import objects_from_dict

START_TIMEOUT_S = 60.0
EXAMPLE = Path(str(files("serve_app") / "playground/examples/hall.jpg"))
"""A photo of several people; its licence is in the same folder."""


def portrait() -> Path:
    """Rear Admiral Grace Hopper; comes with matplotlib (public domain)."""
    from matplotlib import cbook

    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def score_photo(url: str, photo: Path, key: str | None = None) -> tuple[dict[str, Any], float]:
    """POST one photo to a server.

    Returns:
        Its answer, `{"boxes": [...]}` as the contract writes it, and the milliseconds it took.
    Raises:
        requests.RequestException: no connection.
        CommandFault: an error; the message is the server's own.
    """
    body = {"input_data": {"columns": ["image"], "data": [base64.b64encode(photo.read_bytes()).decode()]}}
    began = time.perf_counter()
    response = requests.post(f"{url}/score", json=body, auth=bearer(key) if key else None, timeout=60)
    if not response.ok:
        raise CommandFault(f"{url}/score answered {response.status_code}: {_message_of(response)}")
    return response.json()[0], (time.perf_counter() - began) * 1e3


def _message_of(response: requests.Response) -> str:
    said = what_it_said(response)
    return f"{said} The key is given by --key-env or --key." if response.status_code == 401 else said


def _wait_until_ready(url: str) -> None:
    deadline, waits = time.monotonic() + START_TIMEOUT_S, False
    while status := _status_of(f"{url}/ready"):
        if time.monotonic() > deadline:
            raise CommandFault(f"no server is ready at {url}: {status}")
        if not waits:
            print(f"waiting for {url}/ready, {START_TIMEOUT_S:g} s at most", file=sys.stderr, flush=True)
        waits = True
        time.sleep(0.5)


def _status_of(url: str) -> str | None:
    """Why a server is not ready, and what to do; None if it is ready."""
    try:
        response = requests.get(url, timeout=10)
    except requests.RequestException:
        return "no connection; start one with `make serve` in another terminal"
    if response.status_code == 404:
        return f"{url} answered 404; nothing is deployed there yet, or --url names more than the server, such as http://127.0.0.1:8000"
    return None if response.ok else f"{url} answered {response.status_code}: {_message_of(response)}"


@cli_errors("jobs.demo")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", type=base_url, default="http://127.0.0.1:8000")
    parser.add_argument("--image", type=Path, help="a photo; default: an example photo")
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--key-env", type=key_from, dest="key", metavar="NAME", help="environment variable that holds the bearer key"
    )
    key.add_argument("--key", help="the key itself; other users can see it in the list of processes")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    args = parser.parse_args(argv)
    photo = args.image or (EXAMPLE if EXAMPLE.is_file() else portrait())
    if photo.is_dir():
        raise CommandFault(f"--image: {photo} is a folder; name one of its photos, or score all with jobs.batch_score")
    if not photo.is_file():
        raise CommandFault(f"--image: there is no file {photo}")
    _wait_until_ready(args.url)
    answer, took_ms = score_photo(args.url, photo, args.key)
    objects = objects_from_dict(answer)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "response.json").write_text(json.dumps([answer], indent=1))
    draw_overlay(Image.fromarray(read_photo(photo)[..., ::-1]), objects).save(args.out / "overlay.png")
    found = ", ".join(f"{item.label} {item.score:.2f}" for item in objects) or "nothing"
    print(f"{photo.name}: {found} ({took_ms:.0f} ms)\nwrote {args.out / 'response.json'} and {args.out / 'overlay.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
