"""HTTP client of the service, with retries.

photo ─▶ POST /score ─▶ 200: Result
            ├─ 429, 503: wait as Retry-After says, longer each time, for `patience_s`
            ├─ no connection, 408, 5xx, 404 of the proxy, internal_error: up to TRIES of these, within `patience_s`
            └─ anything else: ScoringError at once
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from threading import Event
from typing import Any, TypeVar

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from rtmdet_ins_client.photo import Photo, bytes_of, file_of, is_url
from rtmdet_ins_client.result import Result
from rtmdet_ins_client.upright import as_seen, has_orientation, size_as_seen

TRIES = 5
"""Tries of a request; with the pauses between them at least 5.6 s, because a proxy that died is back after 5."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
OF_THE_HOST = frozenset({"fetch_timeout", "fetch_unavailable"})
"""Error codes of a URL whose host did not answer: tried once more."""
NOT_OURS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a response raises that is not JSON, or not this service's."""
NO_CODE = "error"
"""Code of a response that is not the service's own."""
MAX_CONNECTIONS = 100
"""Connections that are kept open for the next photos (requests keeps 10); more in flight make new ones each time."""
GRACE_S = 5.0
"""Extra time after the deadline, seconds: until then the service has answered with 408 itself."""
LASTING_TLS_FAULTS = {
    "CERTIFICATE": "REQUESTS_CA_BUNDLE names a file of authorities of your own",
    "WRONG_VERSION_NUMBER": "There is no TLS at this port: use http:// instead of https://",
}
"""Parts of OpenSSL's reasons that another try does not change, and what helps. The first is of a certificate that is not trusted, missing
or unreadable."""

_Answer = TypeVar("_Answer")
_Photo = TypeVar("_Photo", bound=Photo)


class ScoringError(Exception):
    """A photo could not be scored.

    Attributes:
        code: of the service, such as `image_not_decodable`; without a response `no_connection`, or `not_sent` for a wrong URL, header or
            certificate.
        status: HTTP status; 0 without a response.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(code, message, status)
        self.code, self.message, self.status = code, message, status

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class Client:
    """Client of one service; thread-safe. `with Client(…) as client:` closes it at the end.

    Proxies and certificate authorities are those of the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE).

    Args:
        url: base URL, such as http://127.0.0.1:8000; AzureML's, with /score at its end, is accepted too.
        key: bearer key, as read from a file, too; None or an empty one sends none.
        deadline_s: time limit of one request, seconds; the service's own limit may be shorter. A response that keeps arriving is read to
            its end, however slow the network.
        patience_s: how long a photo is tried again, seconds; the last request may begin at the end of it.
    Raises:
        ValueError: `url` does not begin with http:// or https://; `key` has more than one line; or `deadline_s` is not a time limit.
    """

    def __init__(self, url: str, key: str | None = None, *, deadline_s: float = 30.0, patience_s: float = 300.0) -> None:
        if not is_url(url):
            raise ValueError(f"{url!r} is not a base URL; expected one such as http://127.0.0.1:8000")
        if not 0 < deadline_s < inf:
            raise ValueError(f"deadline_s must be a positive number of seconds, got {deadline_s!r}")
        self.url = url.rstrip("/").removesuffix("/score")
        self._deadline_s, self._patience_s = deadline_s, patience_s
        self._turns_photos: bool | None = None
        self._stop = Event()
        self._stops = {self._stop}
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))
        self._session.headers["x-request-timeout-seconds"] = f"{deadline_s:g}"
        if key := (key or "").strip():
            self._session.auth = _bearer(key)  # as a header alone, ~/.netrc would replace it

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; photos in flight are not tried again."""
        for stop in tuple(self._stops):
            stop.set()
        self._session.close()

    def info(self) -> dict[str, Any]:
        """The service's model, classes, `limits`, …: GET /info.

        Raises:
            ScoringError: it does not answer.
        """
        return self._ask(self._stop, dict, "GET", "/info")

    def score(self, photo: Photo, **params: Any) -> Result:
        """Score one photo.

        Args:
            params: as in docs/API.md: score_threshold, max_detections, labels, polygon_tolerance_px, holes, …
        Raises:
            ScoringError: it could not be scored, whatever `on_error` is.
            OSError: there is no such file.
            TypeError, ValueError: it is not a photo; or `labels` is empty.
        """
        return self._score(self._stop, photo, _plain(params))

    def score_many(self, photos: Iterable[_Photo], *, in_flight: int = 4, **params: Any) -> Iterator[tuple[_Photo, Result]]:
        """Score many photos, a few at a time; yields each with its result, in their order.

        A photo that cannot be scored gets a Result with `error` set; the others are not affected.

        Raises:
            TypeError, ValueError: `photos` is a single one; or `labels` is empty.
        """
        if isinstance(photos, Photo):
            raise TypeError(f"photos must be a list or another iterable of photos, not a single {type(photos).__name__}")
        return self._score_many(photos, in_flight, _plain(params))

    def _score_many(self, photos: Iterable[_Photo], in_flight: int, params: dict[str, Any]) -> Iterator[tuple[_Photo, Result]]:
        left, stop = iter(photos), Event()
        self._stops.add(stop)
        with ThreadPoolExecutor(in_flight, thread_name_prefix="score") as threads:
            waiting: list[tuple[_Photo, Future[Result]]] = []
            try:
                while True:
                    for photo in islice(left, 2 * in_flight - len(waiting)):
                        waiting.append((photo, threads.submit(self._score_or_error, stop, photo, params)))
                    if not waiting:
                        return
                    photo, future = waiting.pop(0)
                    yield photo, future.result()
            finally:  # a caller that stops early waits for the requests in flight only
                stop.set()
                self._stops.discard(stop)
                threads.shutdown(wait=False, cancel_futures=True)

    def _score_or_error(self, stop: Event, photo: Photo, params: dict[str, Any]) -> Result:
        try:
            return self._score(stop, photo, params)
        except Exception as error:  # whatever was given as a photo
            return Result([], (0, 0), error=error)

    def _score(self, stop: Event, photo: Photo, params: dict[str, Any]) -> Result:
        if isinstance(photo, str) and (is_url(photo) or photo[:5].lower() == "data:"):
            table = {"columns": ["image"], "data": [photo]}
            return self._ask(stop, _only_result, "POST", "/score", json={"input_data": table, "params": params})
        size, turned = (0, 0), True
        if isinstance(photo, Image.Image):
            turned = self._turns(stop, photo)
            image = as_seen(photo, turned)
            data, size = file_of(image), image.size
        else:
            data = bytes_of(photo)
            with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(io.BytesIO(data)) as image:
                turned = self._turns(stop, image)
                size = size_as_seen(image, turned)
        query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}
        headers = {"Content-Type": "application/octet-stream"}
        read = partial(_only_result, size=size, turned=turned)
        return self._ask(stop, read, "POST", "/score", params=query, data=data, headers=headers)

    def _turns(self, stop: Event, image: Image.Image) -> bool:
        """Whether the service turns this image by its EXIF orientation. Asked once, of the first image that has one."""
        if not has_orientation(image):
            return True
        if self._turns_photos is None:
            try:
                self._turns_photos = bool(self._ask(stop, dict, "GET", "/info").get("exif_orientation", True))
            except ScoringError as error:
                if error.status not in (403, 404, 405):  # a gateway that lets only /score through
                    raise
                self._turns_photos = True
        return self._turns_photos

    def _ask(self, stop: Event, read: Callable[[Any], _Answer], method: str, route: str, **request: Any) -> _Answer:
        """Send a request until it has an answer, which `read` makes of the JSON; `stop` ends its retries."""
        ends, faults, pause_s = time.monotonic() + self._patience_s, 0, FIRST_PAUSE_S
        while True:
            try:
                return self._once(read, method, route, **request)
            except _Refused as error:
                faults += error.tries < inf
                # With jitter: clients refused together must not retry together.
                wait_s = max(pause_s * random.uniform(0.75, 1.25), error.retry_after_s)
                if faults >= error.tries or time.monotonic() + wait_s > ends or stop.wait(wait_s):
                    raise ScoringError(error.code, error.message, error.status) from error.__cause__
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _once(self, read: Callable[[Any], _Answer], method: str, route: str, **request: Any) -> _Answer:
        timeout_s = self._deadline_s + GRACE_S
        try:  # a redirected POST would become a GET
            response = self._session.request(method, self.url + route, timeout=timeout_s, allow_redirects=False, **request)
        except (ValueError, requests.exceptions.InvalidJSONError) as error:  # a wrong URL, proxy, header or param
            raise ScoringError("not_sent", f"The request cannot be sent: {error}") from error
        except requests.RequestException as error:
            remedy = next((remedy for name, remedy in LASTING_TLS_FAULTS.items() if name in str(error)), None)
            if isinstance(error, requests.exceptions.SSLError) and remedy:
                message = f"The request cannot be sent: {error}. {remedy}."
                raise ScoringError("not_sent", message) from error
            raise _Refused("no_connection", f"{self.url} does not answer: {error}") from error
        except OSError as error:  # REQUESTS_CA_BUNDLE names no file
            raise ScoringError("not_sent", f"The request cannot be sent: {error}") from error
        if response.is_redirect:
            message = f"{self.url} redirects to {response.headers['location']}; give the Client that base URL."
            raise ScoringError("redirected", message, response.status_code)
        if not response.ok:
            raise _refusal(response)
        try:
            return read(response.json())
        except NOT_OURS:
            kind = response.headers.get("content-type", "no content type")
            message = f"{self.url} did not answer as this service does: {kind} instead of JSON with objects."
            raise ScoringError("not_this_service", message, response.status_code) from None


class _Refused(ScoringError):
    """No answer; the request may be tried again."""

    retry_after_s: float = 0.0

    @property
    def tries(self) -> float:
        """Number of faults after which the request fails; infinite for a refusal, which is not a fault.

        A 404 that is not the service's own, which has a code, is a fault: HAProxy knows no application for a moment after its start.
        """
        if self.status in (429, 503):
            return inf
        if self.code in OF_THE_HOST:
            return 2
        of_the_proxy = self.status == 404 and self.code == NO_CODE
        return TRIES if self.status in (0, 408) or self.status >= 500 or of_the_proxy or self.code == "internal_error" else 1


def _refusal(response: requests.Response) -> _Refused:
    try:
        said = response.json()
        refused = _Refused(str(said["code"]), str(said["message"]), response.status_code)
    except NOT_OURS:
        refused = _Refused(NO_CODE, f"The answer was {response.status_code} {response.reason}.", response.status_code)
    with suppress(InvalidHeader):
        refused.retry_after_s = Retry().parse_retry_after(response.headers.get("retry-after", "0"))
    return refused


def _only_result(answers: Any, size: tuple[int, int] = (0, 0), turned: bool = True) -> Result:
    """The result for a request's only image; with `on_error="isolate"` its error is in it."""
    (answer,) = answers
    if error := answer.get("error"):
        raise _Refused(str(error["code"]), str(error["message"]), 200)
    return Result.from_answer(answer, size, turned)


def _bearer(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    if not key.isprintable():
        raise ValueError("the key has more than one line, or control characters")
    value = f"Bearer {key}".encode().decode("latin-1")  # as which headers are sent

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = value
        return request

    return sign


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params as JSON takes them: numbers and arrays of NumPy as Python's, labels as a list."""
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in params.items()}
    if (labels := plain.get("labels")) is not None:
        plain["labels"] = [labels] if isinstance(labels, str) else list(labels)
        if not plain["labels"]:  # a query has no empty list, so it would mean all labels
            raise ValueError("labels is empty: name at least one, or leave it out for all")
    return plain
