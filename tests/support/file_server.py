"""A web server on loopback with one file: ranges, cut-off answers and errors on demand. For tests of downloading."""

import http.server
import threading
from contextlib import contextmanager


class FileServer:
    """What the server gives and what it was asked.

    `content` is the file; `cut_after` ends the next answers after so many bytes; `status` answers with an error;
    `requests` lists the Range header of every request (None without one).
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cut_after: int | None = None
        self.status: int | None = None
        self.requests: list[str | None] = []
        self.url = ""


@contextmanager
def file_server(content: bytes, name: str = "model-00000000.pth"):
    """Serve `content` at `server.url` until the block ends."""
    server = FileServer(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.requests.append(wanted)
            if server.status:
                self.send_error(server.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(server.content) and wanted:
                self.send_error(416)
                return
            body = server.content[start:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut_after])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server.url = f"http://127.0.0.1:{running.server_port}/{name}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
