"""The HTTP front on a real socket, without Ray behind it: for browsers, and for clients that need every route."""

import asyncio
import threading
import time
from contextlib import contextmanager

import orjson
import uvicorn

from deployments.params import ScoreParams
from deployments.settings import Settings
from pipeline.types import EncodedImage
from serve_app.http.routes import http_app
from tests.support.fake_ingress import FakeIngress

TIMINGS = {"fetch": 0.1, "decode": 3.0, "queue": 1.5, "detect": 14.0, "polygonize": 2.0}


def found(label, score, left, top, right, bottom, **more):
    """One object: an octagon in its box."""
    width, height = right - left, bottom - top
    around = ((0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3), (0.3, 0))
    ring = [round(value, 4) for x, y in around for value in (left + x * width, top + y * height)]
    box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
    return {"box": box, "label": label, "score": score, "polygon": [ring], **more}


FOUND = (
    found("person", 0.92, 0.1, 0.2, 0.4, 0.9, holes=[[0.2, 0.4, 0.3, 0.4, 0.3, 0.6, 0.2, 0.6, 0.2, 0.4]]),
    found("dog", 0.71, 0.5, 0.5, 0.8, 0.9),
    found("person", 0.22, 0.75, 0.1, 0.95, 0.5),
)


class PageIngress(FakeIngress):
    """Finds the same objects in every photo, those above the asked score; `error` once instead, where it is set."""

    async def score_images(self, images, params: ScoreParams, context, *, answer_format):
        self.seen.append((images, params, context, answer_format))
        if error := self.error:
            self.error = None
            raise error
        boxes = [item for item in FOUND if item["score"] >= (params.score_threshold or 0.3)]
        return [EncodedImage(orjson.dumps({"boxes": boxes}), TIMINGS) for _ in images]


@contextmanager
def page_service(ingress=None, **ingress_settings):
    """A running front; yields its base URL and its ingress."""
    ingress = ingress or PageIngress()
    app = http_app(ingress, Settings.model_validate({"ingress": ingress_settings}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", ingress
    finally:
        server.should_exit = True
        thread.join(10)
