"""An Ingress without Ray, and the HTTP front over it without a socket."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx

from deployments.settings import Settings
from deployments.task import RequestContext
from pipeline.errors import Overloaded, ServiceError
from pipeline.types import EncodedImage
from serve_app.http.routes import http_app

GOOD = {"input_data": {"columns": ["image"], "data": ["aGk=", "aGk="]}}
ANSWER = EncodedImage(b'{"boxes":[]}', {"fetch": 1.0, "decode": 2.0, "queue": 3.0, "detect": 4.0, "polygonize": 5.0})


class FakeIngress:
    """Answers like an Ingress; `error` makes it fail, `answers` replaces what it found."""

    def __init__(self) -> None:
        self.error = None
        self.room_error = None
        self.ready_error = None
        self.answers = None
        self.seen = []
        self.counted, self.callers = [], []

    def context(self, timeout_s=None, request_id=None, caller=""):
        return RequestContext(request_id, time.time() + (timeout_s or 30), caller)

    settings = Settings()

    def check_room(self, _caller):
        if self.room_error:
            raise self.room_error

    def refusal(self):
        return Overloaded("full", retry_after_s=2)

    @contextmanager
    def errors_counted(self, caller=None):
        try:
            yield
        except ServiceError as error:
            self.counted.append(error.code)
            self.callers.append(caller)
            raise

    async def score_images(self, images, params, context, *, answer_format):
        self.seen.append((images, params, context, answer_format))
        if self.error:
            raise self.error
        return self.answers or [ANSWER] * len(images)

    async def check_ready(self):
        if self.ready_error:
            raise self.ready_error

    async def model_info(self):
        return SimpleNamespace(as_dict=lambda: {"model": "m", "classes": ["person"]})


def client_for(ingress: FakeIngress, settings: Settings | None = None) -> httpx.AsyncClient:
    """A client of the HTTP front, which calls the Ingress."""
    ingress.settings = settings or Settings()
    transport = httpx.ASGITransport(http_app(ingress, ingress.settings))
    return httpx.AsyncClient(transport=transport, base_url="http://service")
