"""HTTP client of a running service, with retries: returns one answer for each image of a request.

    images ─▶ POST /score ─▶ 200: answers; images with an error of the service are retried
                 ├─ 429, 503: wait as Retry-After says, longer each time, for PATIENCE_S
                 ├─ no connection, 408, 5xx, 404 of the proxy: up to TRIES of these, within PATIENCE_S
                 └─ anything else: ServiceFault at once; Unavailable if all other requests would fail too

Every request has a deadline, so that the service does not score for clients that have stopped waiting. The client package tries again by
the same rules (tests/test_retries.py); it is a distribution of its own, which this one does not need.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from math import inf
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

Answer = dict[str, Any]
"""One image's object of the contract: `{"boxes": [...]}`, with `"error": {"code", "message"}` if it could not be scored."""

TRIES = 5
"""Tries of a request; with the pauses between them at least 5.6 s, because a proxy that died is back after 5 (docs/RESULTS.md)."""
PATIENCE_S = 600.0
"""How long one request is retried, seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
GRACE_S = 5.0
"""Extra time after the request's deadline, seconds: until then the service has answered with 408 itself."""
LASTING_TLS_FAULTS = {
    "CERTIFICATE": "REQUESTS_CA_BUNDLE names a file of authorities of your own",
    "WRONG_VERSION_NUMBER": "There is no TLS at this port: use http:// instead of https://",
}
"""Parts of OpenSSL's reasons that another try does not change, and what helps. The first is of a certificate that is not trusted, missing
or unreadable."""
TRANSIENT_CODES = {"overloaded", "internal_error", "deadline_exceeded"}
"""Error codes of the service, not of a bad image."""
OF_ALL_REQUESTS = {403, 404, 405}
"""Statuses that every other request would get, too."""
OF_THE_HOST = {"fetch_timeout", "fetch_unavailable"}
"""Error codes of a URL whose host did not answer: retried once."""


class ServiceFault(Exception):
    """A request failed after all retries; with the service's message."""


class Unavailable(ServiceFault):
    """All other requests would fail too: no connection, a wrong key, no such route, or overload for too long."""


class ServiceClient:
    """Client of one service; thread-safe.

    Args:
        url: base URL, such as http://127.0.0.1:8000.
        key: bearer key; None sends none.
        deadline_s: time limit of a request, seconds; the service's own limit may be shorter.
        connections: most connections to keep open.
    """

    def __init__(self, url: str, key: str | None = None, deadline_s: float = 30.0, connections: int = 8) -> None:
        self.url, self._deadline_s, self._stopped = url.rstrip("/"), deadline_s, Event()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=connections))
        self._session.headers.update({"content-type": "application/json", "x-request-timeout-seconds": f"{deadline_s:g}"})
        if key:
            self._session.auth = bearer(key)  # as a header alone, ~/.netrc would replace it

    def stop(self) -> None:
        """Try no request again: those that fail from now on, or wait to be retried, raise Unavailable."""
        self._stopped.set()

    def info(self) -> dict[str, Any]:
        """GET /info: model, classes and `limits`; empty if the response is not a JSON object."""
        info = self._request("GET", "/info")
        return info if isinstance(info, dict) else {}

    def score(self, images: Sequence[str], params: dict[str, Any]) -> list[Answer]:
        """One answer for each image, in order.

        Args:
            images: base64 text or URLs.
            params: of the contract.
        Raises:
            ServiceFault: the request failed after all retries; Unavailable if others would fail too.
        """
        answers = self._score(images, params)
        codes = TRANSIENT_CODES | OF_THE_HOST
        for pause_s in pauses(TRIES - 1):
            again = [index for index, answer in enumerate(answers) if _code_of(answer) in codes]
            codes = TRANSIENT_CODES
            if not again:
                break
            self._pause(pause_s)
            for index, answer in zip(again, self._score([images[index] for index in again], params), strict=True):
                answers[index] = answer
        return answers

    def _score(self, images: Sequence[str], params: dict[str, Any]) -> list[Answer]:
        table = {"columns": ["image"], "data": list(images)}
        answers = self._request("POST", "/score", orjson.dumps({"input_data": table, "params": params}))
        if (
            not isinstance(answers, list)
            or len(answers) != len(images)
            or not all(isinstance(answer, dict) and isinstance(answer.get("boxes"), list) for answer in answers)
        ):
            raise ServiceFault(f"{self.url} did not answer with one result for each of {len(images)} images: is it this service?")
        return answers

    def _request(self, method: str, route: str, body: bytes | None = None) -> Any:
        ends, faults, between = time.monotonic() + PATIENCE_S, 0, pauses()
        while True:
            tries, pause_s = float(TRIES), next(between)
            try:  # a redirected POST would become a GET
                answer = self._session.request(
                    method, self.url + route, data=body, timeout=self._deadline_s + GRACE_S, allow_redirects=False
                )
            except ValueError as error:  # requests' errors for a wrong URL, proxy or header are ValueErrors
                raise Unavailable(f"the request cannot be sent: {error}") from error
            except requests.RequestException as error:
                remedy = next((remedy for name, remedy in LASTING_TLS_FAULTS.items() if name in str(error)), None)
                if isinstance(error, requests.exceptions.SSLError) and remedy:
                    message = f"the request cannot be sent: {error}. {remedy}"
                    raise Unavailable(message) from error
                fault: ServiceFault = Unavailable(f"{self.url} does not answer: {error}")
            except OSError as error:  # REQUESTS_CA_BUNDLE names no file
                raise Unavailable(f"the request cannot be sent: {error}") from error
            else:
                if answer.ok and not answer.is_redirect:
                    return self._document(answer, route)
                fault, tries = self._refusal(answer)
                pause_s = max(pause_s, _retry_after_s(answer))
            faults += tries < inf
            if faults >= tries or time.monotonic() + pause_s > ends:
                raise fault
            self._pause(pause_s)

    def _document(self, answer: requests.Response, route: str) -> Any:
        try:
            return answer.json()
        except requests.JSONDecodeError as error:
            raise ServiceFault(f"{self.url}{route} did not answer with JSON: is it this service?") from error

    def _refusal(self, answer: requests.Response) -> tuple[ServiceFault, float]:
        """The error to raise, and with how many faults; infinite for a refusal, which is not a fault."""
        if answer.is_redirect:
            return Unavailable(f"{self.url} redirects to {answer.headers['location']}"), 1
        fault = f"the service answered {answer.status_code}: {what_it_said(answer)}"
        if answer.status_code in (429, 503):
            return Unavailable(f"refused for {PATIENCE_S:g} s: {fault}"), inf
        if answer.status_code == 401:
            key = "the one that --key-env names is wrong" if self._session.auth else "name its variable with --key-env"
            return Unavailable(f"{fault}; it wants a key: {key}"), 1
        kind = Unavailable if answer.status_code in OF_ALL_REQUESTS else ServiceFault
        return kind(fault), TRIES if answer.status_code >= 500 or answer.status_code == 408 or _of_the_proxy(answer) else 1

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Unavailable(f"{self.url}: not tried again, as the job is being stopped")


def is_transient(answer: Answer) -> bool:
    """Whether an image has an error that is the service's and may be gone the next time."""
    return _code_of(answer) in TRANSIENT_CODES


def _code_of(answer: Answer) -> Any:
    """The error code of an image; None without an error."""
    return answer.get("error", {}).get("code")


def base_url(text: str) -> str:
    """argparse type of `--url`: http or https, with a host, without /score; removes a trailing slash."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not a complete URL; expected one such as http://127.0.0.1:8000")
    base = text.rstrip("/")
    if parts.path.rstrip("/").endswith("/score"):
        raise argparse.ArgumentTypeError(f"{text!r}: give it without /score, which is appended: {base.removesuffix('/score')}")
    return base


def key_from(name: str) -> str:
    """argparse type of `--key-env`: the key in the environment variable with this name."""
    if not (key := os.environ.get(name, "").strip()):
        raise argparse.ArgumentTypeError(f"the environment variable {name} is not set or empty")
    return key


def bearer(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """`auth` of requests that sends a bearer key."""
    value = f"Bearer {key}".encode().decode("latin-1")  # as which headers are sent

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = value
        return request

    return sign


def pauses(count: int | None = None) -> Any:
    """Seconds between tries: exponential backoff with jitter, so that clients refused together do not retry together."""
    pause_s, given = FIRST_PAUSE_S, 0
    while count is None or given < count:
        yield pause_s * random.uniform(0.75, 1.25)
        pause_s, given = min(2 * pause_s, LONGEST_PAUSE_S), given + 1


def _retry_after_s(answer: requests.Response) -> float:
    """Seconds until the Retry-After header's time, seconds or a date; 0 if there is none."""
    try:
        return Retry().parse_retry_after(answer.headers.get("retry-after", "0"))
    except InvalidHeader:
        return 0.0


def _of_the_proxy(answer: requests.Response) -> bool:
    """Whether a 404 is not the service's own, which has a code: HAProxy knows no application for a moment after its start."""
    try:
        return answer.status_code == 404 and "code" not in answer.json()
    except (ValueError, TypeError):
        return True


def what_it_said(answer: requests.Response) -> str:
    """Message and code of an error of this service; the beginning of the body for any other response."""
    try:
        return "{message} ({code})".format_map(answer.json())
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
