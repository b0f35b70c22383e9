"""Locust users; start them with `python -m loadtest locust` (own service) or `locust -f loadtest/locustfile.py -H URL`.

Name the users on the command line: Base64User, UrlUser, MultiImageUser, MixedUser. --shape steady|ramp|spike|soak uses -u (peak users)
and -t (its length). LOADTEST_KEY is sent as the API key. UrlUser and MixedUser name photos on this file's image server, which the service
must be allowed to fetch from; a service on another machine cannot reach it and needs --image-urls.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from gevent.event import Event
from locust import FastHttpUser, LoadTestShape, between, events, task
from locust.exception import StopUser

from jobs.command_line import amount, reason_of
from loadtest.load.image_server import start_image_server
from loadtest.load.photos import as_size, photos_from
from loadtest.load.shapes import SHAPES, users_at
from loadtest.load.traffic import (
    JSON_HEADERS,
    OK,
    RemoteHostError,
    is_loopback,
    key_headers,
    outcome_of,
    refuse_remote,
    request_bodies,
)

MULTI_IMAGES = 8
HEADERS = JSON_HEADERS | key_headers(os.environ.get("LOADTEST_KEY"))
URL_REFUSED = (422, 424)
"""Statuses of a refused URL: the second with `ingress.azureml_status_codes`."""
SHAPE_S = 60.0
"""Default length of a shape, seconds."""
PREPARED = Event()
"""Set once the request bodies exist: the master may tell a worker to start its users before."""


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add our options to Locust's."""
    parser.add_argument(
        "--allow-remote", action="store_true", env_var="LOADTEST_ALLOW_REMOTE", help="allow a host on another machine"
    )
    parser.add_argument("--shape", choices=SHAPES, default="steady", help="number of users over time; the peak is -u")
    parser.add_argument("--shape-seconds", type=amount, default=0.0, help=f"length of the shape (default: -t, or {SHAPE_S:g})")
    parser.add_argument(
        "--image-urls",
        default="",
        help="comma-separated URLs that the service can fetch (default: of the locustfile's image server)",
    )
    parser.add_argument("--images", type=Path, help="folder of photos (default: generated)")
    parser.add_argument(
        "--size", type=as_size, default="640x480", metavar="WxH", help="size of generated photos (default: 640x480)"
    )


@events.init.add_listener
def prepare(environment: Any, **_: object) -> None:
    """Create the request bodies and start the image server."""
    options = environment.parsed_options
    if environment.host:
        try:
            refuse(environment.host, options, environment.user_classes)
        except RemoteHostError as error:
            raise SystemExit(str(error)) from error
    try:
        photos = photos_from(options.images, size_wh=options.size)
        _server, urls = start_image_server(photos, int(os.environ.get("LOADTEST_IMAGE_PORT", "0")))
    except OSError as error:  # Locust would go on without the request bodies
        raise SystemExit(reason_of(error)) from error
    environment.bodies = {
        "base64": request_bodies(photos, 1),
        "url": request_bodies(options.image_urls.split(",") if options.image_urls else urls, 1),
        "multi": request_bodies(photos, MULTI_IMAGES),
    }
    if environment.host and not options.image_urls and any(user.names_urls for user in environment.user_classes):
        drop_refused_urls(environment, urlsplit(urls[0]).port)
    PREPARED.set()


def drop_refused_urls(environment: Any, image_port: int | None) -> None:
    """Send one URL; if the service refuses this machine's image server, print what to set and continue without URLs."""
    refusal = url_refusal(environment.host, environment.bodies["url"][0])
    if refusal is None:
        return
    for user in environment.user_classes:
        user.tasks = [one for one in user.tasks if one.__name__ != UrlUser.url.__name__]
    dropped = [user.__name__ for user in environment.user_classes if not user.tasks]
    environment.user_classes[:] = [user for user in environment.user_classes if user.tasks]
    print(
        f"{environment.host} fetches no photos from this machine's image server: {refusal}\n"
        f"To load it by URL, too, set args.image_loader.fetch in its configuration to {{allowed_networks: [127.0.0.1/32], "
        f"allowed_ports: [{image_port}]}} and start this with LOADTEST_IMAGE_PORT={image_port}; or give --image-urls that it may fetch.\n"
        f"This run sends no URLs{f'; {dropped[0]} is left out' if dropped else ''}.",
        file=sys.stderr,
    )
    if not environment.user_classes:
        raise SystemExit(1)


def url_refusal(host: str, body: bytes) -> str | None:
    """The service's message if it refuses the URL in a body; None if it scores it or fails for another reason."""
    try:
        answer = requests.post(f"{host.rstrip('/')}/score", data=body, headers=HEADERS, timeout=30)
    except requests.RequestException:
        return None  # no connection: the users' failures will show it
    return str(answer.json().get("message")) if answer.status_code in URL_REFUSED else None


def refuse(host: str, options: Any, users: Iterable[type[ScoringUser]]) -> None:
    """Raise RemoteHostError for a remote host without --allow-remote, or one that cannot fetch these users' URLs."""
    refuse_remote(host, options.allow_remote)
    naming = ", ".join(user.__name__ for user in users if user.names_urls)
    if naming and not options.image_urls and not is_loopback(host):
        raise RemoteHostError(
            f"{naming}: photos at http://127.0.0.1 of this machine are out of {host}'s reach; "
            "give --image-urls, or name Base64User or MultiImageUser"
        )


class Shape(LoadTestShape):
    """The chosen shape."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Number of users now, and the spawn rate."""
        options: Any = self.runner.environment.parsed_options if self.runner else None
        peak = options.num_users or 1
        seconds = options.shape_seconds or float(options.run_time or SHAPE_S)
        users = users_at(options.shape, self.get_run_time(), peak, seconds)  # type: ignore[no-untyped-call, unused-ignore]  # Locust's
        return None if users is None else (users, float(peak))


class ScoringUser(FastHttpUser):
    """Base class of the users: sends a request and checks the body of the response."""

    abstract = True
    names_urls = False
    wait_time = between(0.0, 0.1)

    def on_start(self) -> None:
        """Wait for the request bodies. Refuse another machine, also if it was entered in Locust's web page."""
        PREPARED.wait()
        try:
            options: Any = self.environment.parsed_options
            refuse(self.host or "", options, [type(self)])
        except RemoteHostError as error:
            raise StopUser(str(error)) from error

    def score(self, kind: str, images: int, name: str) -> None:
        """Send one request; refusals are counted under a separate name."""
        body = random.choice(self.environment.bodies[kind])
        with self.client.post("/score", data=body, headers=HEADERS, name=name, catch_response=True) as answer:
            if answer.status_code == 0:
                return  # no answer: Locust's own failure says why
            outcome = outcome_of(answer.status_code, answer.headers, answer.content or b"", images)
            if outcome == OK:
                answer.success()
                return
            if outcome.startswith("refused"):
                answer.request_meta["name"] = f"{name}: {outcome}, Retry-After"
            answer.failure(outcome)


class Base64User(ScoringUser):
    """One photo in the body."""

    @task
    def base64(self) -> None:
        """Score it."""
        self.score("base64", 1, "1 image, base64")


class UrlUser(ScoringUser):
    """One photo by URL."""

    names_urls = True

    @task
    def url(self) -> None:
        """Score it."""
        self.score("url", 1, "1 image, URL")


class MultiImageUser(ScoringUser):
    """Several photos in one body."""

    @task
    def multi(self) -> None:
        """Score them."""
        self.score("multi", MULTI_IMAGES, f"{MULTI_IMAGES} images, base64")


class MixedUser(ScoringUser):
    """Mostly one photo, some by URL, few of many."""

    names_urls = True

    @task(6)
    def base64(self) -> None:
        """One in the body."""
        self.score("base64", 1, "1 image, base64")

    @task(3)
    def url(self) -> None:
        """One by URL."""
        self.score("url", 1, "1 image, URL")

    @task(1)
    def multi(self) -> None:
        """Several."""
        self.score("multi", MULTI_IMAGES, f"{MULTI_IMAGES} images, base64")
