"""A malicious web server on loopback: slow and endless bodies, false headers, redirect loops."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DRIP_S = 0.2
CHUNK = b"\xff\xd8\xff\xe0" + b"\0" * 65_532
GZIP_BOMB = gzip.compress(b"\0" * 100_000_000, 9)


class Hostile(http.server.BaseHTTPRequestHandler):
    """One path for each trick; anything else is a 404."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Play the trick that the path names, until the other side has had enough."""
        trick = getattr(self, "_" + self.path.strip("/").partition("?")[0].replace("-", "_"), None)
        self.close_connection = True
        with suppress(OSError):
            if trick is None:
                self.send_error(404)
            else:
                trick()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _head(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _drip(self) -> None:
        self._head(Content_Length="1000000")
        while True:
            self.wfile.write(b"\xff")
            self.wfile.flush()
            time.sleep(DRIP_S)

    def _silence(self) -> None:
        self._head(Content_Length="1000000")
        time.sleep(60)

    def _endless(self) -> None:
        self._head()
        while True:
            self.wfile.write(CHUNK)

    def _ten_gigabytes(self) -> None:
        self._head(Content_Length="10000000000")
        self.wfile.write(CHUNK)

    def _one_byte_chunks(self) -> None:
        self._head(Transfer_Encoding="chunked")
        while True:
            self.wfile.write(b"1\r\n\xff\r\n" * 10_000)

    def _gzip_bomb(self) -> None:
        self._head(Content_Encoding="gzip", Content_Length=str(len(GZIP_BOMB)))
        self.wfile.write(GZIP_BOMB)

    def _loop(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/loop")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _to_metadata(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hostile_server() -> Iterator[str]:
    """Run it; yields its base URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
