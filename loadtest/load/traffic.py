"""Request bodies of load tests, checks of the responses, server timings, and allowed hosts."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

JSON_HEADERS = {"content-type": "application/json"}
OK = "ok"
BOX_KEYS = {"box", "label", "score", "polygon"}


@dataclass(frozen=True, slots=True)
class Wire:
    """Request and response format of a server; the defaults are the contract's `POST /score`.

    Args:
        path: of the URL.
        request: the body to send, from the contract's.
        answer: the contract's body, from that of a 200.
    """

    path: str = "/score"
    request: Callable[[bytes], bytes] = bytes
    answer: Callable[[bytes], bytes] = bytes


SCORE = Wire()


class RemoteHostError(ValueError):
    """The target is another machine, without --allow-remote."""


def key_headers(key: str | None) -> dict[str, str]:
    """The request headers for an API key; empty without one."""
    return {"authorization": f"Bearer {key}"} if key else {}


def refuse_remote(url: str, allow_remote: bool) -> None:
    """Raise unless the URL is this machine's loopback, or remote hosts were allowed.

    Raises:
        RemoteHostError: another host.
    """
    if not allow_remote and not is_loopback(url):
        raise RemoteHostError(
            f"{urlsplit(url).hostname or url!r} is not this machine; use --allow-remote if you may put load on it"
        )


def is_loopback(url: str) -> bool:
    """Whether a URL points to this machine; of names only `localhost` counts, so that the result does not depend on DNS."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def request_bodies(images: Sequence[bytes | str], images_per_request: int) -> list[bytes]:
    """For each image a body with it and the next ones, `images_per_request` in all, cyclically; bytes as base64, text (URLs) unchanged."""
    texts = [image if isinstance(image, str) else base64.b64encode(image).decode() for image in images]
    return [
        orjson.dumps(
            {"input_data": {"columns": ["image"], "data": [texts[(first + k) % len(texts)] for k in range(images_per_request)]}}
        )
        for first in range(len(texts))
    ]


def outcome_of(status: int, headers: Mapping[str, str], body: bytes, images: int) -> str:
    """Outcome of a request: `ok`, a refusal, a status, or the fault of an invalid 200.

    Args:
        headers: of the answer, keys in lower case or case-insensitive.
        images: how many images were asked about.
    """
    if status == 200:
        fault = answer_fault(body, images)
        return OK if fault is None else f"wrong answer: {fault}"
    if status in (429, 503):
        return f"refused {status}" if headers.get("retry-after") else f"{status} without Retry-After"
    return f"status {status}"


def answer_fault(body: bytes, images: int) -> str | None:
    """What is wrong with the body of a 200; None if it is a valid answer for `images` images."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "not JSON"
    if not isinstance(answer, list):
        return "not a list"
    if len(answer) != images:
        return f"{len(answer)} results for {images} images"
    for result in answer:
        if not isinstance(result, dict) or not isinstance(result.get("boxes"), list):
            return "a result without boxes"
        if "error" in result:
            return "an image was not scored"
        if any(not isinstance(box, dict) or not box.keys() >= BOX_KEYS for box in result["boxes"]):
            return "an object without " + ", ".join(sorted(BOX_KEYS))
    return None


def stages_of(server_timing: str | None) -> dict[str, float]:
    """Milliseconds by stage from a Server-Timing header; entries without a duration are left out."""
    stages: dict[str, float] = {}
    for entry in (server_timing or "").split(","):
        name, _, duration = entry.strip().partition(";dur=")
        try:
            stages[name] = float(duration)
        except ValueError:
            continue
    return stages
