"""HTTP client of the service, with retries.

photo ─▶ POST /score ─▶ 200: Result
            ├─ 429, 503: wait as Retry-After says, longer each time, up to `patience_s`
            ├─ no connection, 408, 5xx, 404 of the proxy: up to TRIES tries
            └─ anything else: ScoringError at once
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from requests.adapters import HTTPAdapter

from rtmdet_ins_client.result import Result
from rtmdet_ins_client.upright import upright, upright_size

Photo = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or an image."""

TRIES = 5
"""With their pauses at least 5.6 s: a proxy that died is back after 5."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
NOT_IN_FILES = {"HSV": "RGB", "La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}
"""Modes of Pillow that neither PNG nor TIFF holds, and what they are sent as."""
NO_CODE = "error"
"""Code of a response that is not the service's own."""
MOST_CONNECTIONS = 100
"""Connections that are kept open for the next photos (requests keeps 10); more in flight make new ones each time."""
GRACE_S = 5.0
"""Extra time after the deadline, seconds: until then the service has answered with 408 itself."""


class ScoringError(Exception):
    """A photo could not be scored.

    Attributes:
        code: of the service, such as `image_not_decodable`; `no_connection` without a response.
        status: HTTP status; 0 without a response.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(f"{message} ({code})")
        self.code, self.message, self.status = code, message, status


class Client:
    """Client of one service; thread-safe.

    Args:
        url: base URL, such as http://127.0.0.1:8000; AzureML's, with /score at its end, is accepted too.
        key: bearer key; None sends none.
        deadline_s: time limit of one request, seconds; the service's own limit may be shorter.
        patience_s: how long a photo is retried while the service is overloaded, seconds.
    Raises:
        ValueError: `url` does not begin with http:// or https://.
    """

    def __init__(self, url: str, key: str | None = None, *, deadline_s: float = 30.0, patience_s: float = 300.0) -> None:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no base URL; expected one such as http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/score")
        self._deadline_s, self._patience_s = deadline_s, patience_s
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=MOST_CONNECTIONS))
        self._session.trust_env = False  # ~/.netrc would replace the key
        self._session.headers["x-request-timeout-seconds"] = f"{deadline_s:g}"
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def score(self, photo: Photo, **params: Any) -> Result:
        """Score one photo.

        Args:
            params: as in docs/API.md: score_threshold, max_detections, labels, polygon_tolerance_px, holes, …
        Raises:
            ScoringError: it could not be scored.
            OSError: there is no such file.
        """
        data = _file_bytes(photo)
        answer = self._ask(data, params)
        return Result.from_answer(answer, _size_of(data))

    def score_many(self, photos: Iterable[Photo], *, in_flight: int = 4, **params: Any) -> Iterator[tuple[Photo, Result]]:
        """Score many photos, a few at a time; yields each with its result, in their order.

        A photo that cannot be scored gets a Result with `error` set; the others are not affected.
        """
        left = iter(photos)
        with ThreadPoolExecutor(in_flight, thread_name_prefix="score") as threads:
            waiting: list[tuple[Photo, Future[Result]]] = []
            try:
                while True:
                    for photo in islice(left, 2 * in_flight - len(waiting)):
                        waiting.append((photo, threads.submit(self._score_or_error, photo, params)))
                    if not waiting:
                        return
                    photo, future = waiting.pop(0)
                    yield photo, future.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)  # a caller that stops early waits for those in flight only

    def _score_or_error(self, photo: Photo, params: dict[str, Any]) -> Result:
        try:
            return self.score(photo, **params)
        except Exception as error:  # whatever was given as a photo
            return Result([], (0, 0), error=error)

    def _ask(self, data: bytes, params: dict[str, Any]) -> dict[str, Any]:
        began, tries, pause_s = time.monotonic(), 0, FIRST_PAUSE_S
        while True:
            tries += 1
            wait_s = pause_s * random.uniform(0.75, 1.25)  # clients refused together must not retry together
            error = self._once(data, params)
            if isinstance(error, dict):
                return error
            if error.status in (429, 503):
                wait_s = max(wait_s, error.retry_after_s)
                if time.monotonic() - began + wait_s > self._patience_s:
                    raise error
            elif tries >= TRIES or not error.is_transient:
                raise error
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _once(self, data: bytes, params: dict[str, Any]) -> dict[str, Any] | _Refused:
        """Send one request; returns the answer, or a refusal that may be retried."""
        query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}
        headers = {"Content-Type": "application/octet-stream"}
        try:
            response = self._session.post(
                f"{self.url}/score",
                params=query,
                data=data,
                headers=headers,
                timeout=self._deadline_s + GRACE_S,
                allow_redirects=False,  # a POST would become a GET
            )
        except requests.RequestException as error:
            return _Refused("no_connection", f"{self.url} does not answer: {error}")
        if response.is_redirect:
            raise ScoringError("redirected", f"{self.url} redirects to {response.headers['location']}.", response.status_code)
        if not response.ok:
            return _refusal(response)
        try:
            (answer,) = response.json()
            return dict(answer, boxes=answer["boxes"])
        except (ValueError, TypeError, KeyError):
            raise ScoringError(
                "not_this_service", f"{self.url} did not answer as this service does.", response.status_code
            ) from None


class _Refused(ScoringError):
    retry_after_s: float = 0.0

    @property
    def is_transient(self) -> bool:
        """Also a 404 that is not the service's own, which has a code: HAProxy knows no application for a moment after its start."""
        return self.status in (0, 408) or self.status >= 500 or (self.status == 404 and self.code == NO_CODE)


def _refusal(response: requests.Response) -> _Refused:
    try:
        said = response.json()
        refused = _Refused(str(said["code"]), str(said["message"]), response.status_code)
    except (ValueError, TypeError, KeyError):
        refused = _Refused(NO_CODE, f"The answer was {response.status_code} {response.reason}.", response.status_code)
    after = response.headers.get("retry-after", "")
    refused.retry_after_s = float(after) if after.isdecimal() else 0.0
    return refused


def _file_bytes(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        return _image_bytes(photo)
    return Path(photo).read_bytes()


def _image_bytes(image: Image.Image) -> bytes:
    """As PNG, or as TIFF where PNG does not know the mode. Without metadata, so it is turned first."""
    file, image = io.BytesIO(), upright(image)
    if image.mode in NOT_IN_FILES:
        image = image.convert(NOT_IN_FILES[image.mode])
    image.save(file, "PNG" if image.mode in PNG_MODES else "TIFF")
    return file.getvalue()


def _size_of(data: bytes) -> tuple[int, int]:
    """Width and height of the upright photo, pixels; (0, 0) if Pillow cannot read it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright_size(image)
    except (OSError, ValueError):
        return (0, 0)
