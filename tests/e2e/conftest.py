"""One real service for all end-to-end tests: `serve run` on the shipped YAML, a free port, loopback only."""

import functools
import http.server
import io
import threading
from pathlib import Path

import pytest
from matplotlib import cbook
from PIL import Image

from loadtest.service.local_service import local_service
from tests.security.hostile_servers import hostile_server
from tests.support.odd_images import encode


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A real photograph of one person that every installation has, JPEG."""
    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).read_bytes()


@pytest.fixture(scope="session")
def photos(photo) -> list[bytes]:
    """Eight different photographs: the one, mirrored and cropped."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    width, height = image.size
    variants = []
    for step in range(8):
        crop = image.crop((step * 8, step * 6, width - step * 4, height - step * 10))
        variants.append(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if step % 2 else crop)
    return [encode(variant) for variant in variants]


@pytest.fixture(scope="session")
def image_server(tmp_path_factory, photo):
    """A web server on loopback with the photo; yields its base URL."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "photo.jpg").write_bytes(photo)
    (folder / "text.jpg").write_bytes(b"not an image at all")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def hostile_url():
    """Base URL of a web server that drips, never ends and lies."""
    with hostile_server() as url:
        yield url


@pytest.fixture(scope="package")
def service(image_server, hostile_url):
    """The running service. Changed from the shipped file: the port, and that the tests' servers may be fetched from."""
    ports = [int(url.rsplit(":", 1)[1]) for url in (image_server, hostile_url)]

    def allow_test_servers(document):
        loader = document["applications"][0]["args"]["image_loader"]
        loader["fetch"] = {"allowed_networks": ["127.0.0.1/32"], "allowed_ports": [80, 443, *ports]}

    with local_service(change=allow_test_servers, env={"RAY_metrics_report_interval_ms": "500"}) as running:
        yield running
        family = running.processes()
    assert not [process for process in family if process.is_running()], "the service left processes behind"
    assert not running.folder.exists()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """With a failure comes what the service and the proxies in front of it said last: its folder is gone afterwards."""
    report = yield
    running = getattr(item, "funcargs", {}).get("service")
    if report.failed and running is not None and running.folder.exists():
        report.sections.append(("end of the service's log", running.log_tail(60)))
        for pattern in ("haproxy/**/*.stderr.log", "ray/session_latest/logs/serve/proxy_*.log"):
            for file in sorted(running.folder.glob(pattern)):
                report.sections.append((f"end of {file.name}", "\n".join(file.read_text(errors="replace").splitlines()[-30:])))
    return report
