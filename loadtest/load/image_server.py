"""HTTP server on loopback for images, for load tests with URLs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    """Several processes may serve the same images at one port, as Locust's workers do: the kernel distributes the connections."""

    allow_reuse_port = True


def start_image_server(images: Sequence[bytes], port: int = 0) -> tuple[ThreadingHTTPServer, list[str]]:
    """Serve images from a daemon thread, until `shutdown` and `server_close` of the returned server.

    Args:
        images: encoded JPEGs, served at /0.jpg, /1.jpg, …
        port: TCP port on loopback; 0 takes a free one.
    Returns:
        The server, and the URL of each image.
    Raises:
        OSError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The image of that number; 404 for any other path."""
            name = self.path.strip("/").removesuffix(".jpg")
            found = name.isdecimal() and int(name) < len(images)
            body = images[int(name)] if found else b""
            self.send_response(200 if found else 404)
            self.send_header("content-type", "image/jpeg")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = _Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, [f"http://127.0.0.1:{server.server_port}/{number}.jpg" for number in range(len(images))]


def allow_image_server(document: dict[str, Any], port: int) -> None:
    """Edit a serve_config.yaml: the service may fetch from an image server at this port, and from nowhere else on this machine."""
    arguments = document["applications"][0].setdefault("args", {})
    arguments.setdefault("image_loader", {})["fetch"] = {"allowed_networks": ["127.0.0.1/32"], "allowed_ports": [port]}
