"""A service on a real socket that plays a script: one step for each request, the last one again and again."""

import itertools
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOST = None
"""Step: the connection is closed without a response."""


def answer(status, document, **headers):
    """Step: a response; text is sent as it is, everything else as JSON."""
    return status, document if isinstance(document, str) else json.dumps(document), headers


def error(status, code, **headers):
    """Step: an error as the service says it."""
    return answer(status, {"code": code, "message": "no"}, **headers)


def isolated(code):
    """Step: the answer for one image that could not be scored, with `on_error: isolate`."""
    return answer(200, [{"boxes": [], "error": {"code": code, "message": "no"}}])


OK = answer(200, [{"boxes": []}])
FULL = error(503, "overloaded")


class ScriptedService(ThreadingHTTPServer):
    """Attributes: `url`; `asked`: method, path, headers and body of each request."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.asked = f"http://127.0.0.1:{self.server_port}", []
        self.play(*script)

    def play(self, *script):
        """Play this from the next request on."""
        self.script = itertools.chain(script, itertools.repeat(script[-1]))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        step = next(self.server.script)
        if step is LOST:
            return
        status, text, headers = step
        self.send_response(status)
        for name, value in ({"content-length": len(text)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST  # noqa: N815 (the name is http.server's)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def scripted_service(*script, tls=None):
    """A running ScriptedService.

    Args:
        tls: an ssl.SSLContext, for https.
    """
    with ScriptedService(script) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            server.url = f"https://localhost:{server.server_port}"
            server.handle_error = lambda *_: None  # of clients that do not trust it
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
