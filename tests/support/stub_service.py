"""A service on a real socket that says what a test wants it to."""

import json
import threading
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOUND = {"boxes": [{"box": {"topX": 0.1}, "label": "person", "score": 0.9, "polygon": []}]}
UNREADABLE = {"boxes": [], "error": {"code": "image_not_decodable", "message": "no"}}


class Stub(ThreadingHTTPServer):
    """Answers FOUND for every image, UNREADABLE for one that `is_bad`; `statuses` come first, each once.

    Attributes:
        asked: (headers, images, params) of every POST, in order.
        on_post: called after each POST is read, before its answer.
    """

    daemon_threads = True

    def __init__(
        self, statuses=(), is_bad=lambda _image: False, limits=None, key=None, answer=None, classes=("person",), model="stub"
    ):
        self.statuses, self.is_bad, self.key, self.answer = deque(statuses), is_bad, key, answer
        self.classes, self.model = classes, model
        self.limits = {"max_body_mb": 32, "max_images_per_request": 64} | (limits or {})
        self.asked, self.on_post = [], lambda: None
        self.info = {}
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _send(self, status, document, headers=()):
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in (("content-length", len(body)), *headers):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def _is_locked(self):
        if self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self._send(401, {"code": "unauthorized", "message": "The bearer key is not valid."})
            return True
        return False

    def do_GET(self):
        if not self._is_locked():
            info = {"model": self.server.model, "classes": self.server.classes, "limits": self.server.limits}
            self._send(200, info | self.server.info | {"limits": self.server.limits | self.server.info.get("limits", {})})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        images = body["input_data"]["data"]
        self.server.asked.append((dict(self.headers), images, body.get("params")))
        self.server.on_post()
        if self._is_locked():
            return
        if self.server.statuses:
            self._send(self.server.statuses.popleft(), {"message": "not now"}, [("retry-after", 1)])
            return
        found = self.server.answer or FOUND
        self._send(200, [UNREADABLE if self.server.is_bad(image) else found for image in images])

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def stub_service(**how):
    """A running Stub."""
    with Stub(**how) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
