"""The client against the service's own HTTP front, with a stub behind it."""

import io
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image
from rtmdet_ins_client import Client, ScoringError
from rtmdet_ins_client import client as module

from pipeline.errors import ImageError, Overloaded, StageFailed
from tests.support.page_service import page_service


@pytest.fixture(scope="module")
def running():
    with page_service() as (url, ingress):
        yield url, ingress


@pytest.fixture
def client(running, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    running[1].seen.clear()
    running[1].error = None
    return Client(running[0])


def photo(size=(200, 100), exif=None):
    file = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(file, "JPEG", **({"exif": exif} if exif else {}))
    return file.getvalue()


def test_a_photo_becomes_typed_objects(client, running, tmp_path):
    """From a path, bytes or an image alike; params reach the service."""
    (tmp_path / "a.jpg").write_bytes(photo())
    for given in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), photo(), Image.new("RGB", (200, 100))):
        result = client.score(given, score_threshold=0.5, closed=False, labels=["person", "dog"])
        assert [(item.label, item.score) for item in result.objects] == [("person", 0.92), ("dog", 0.71)]
        assert result.size == (200, 100)
    params = running[1].seen[-1][1]
    assert (params.score_threshold, params.closed, params.labels) == (0.5, False, ["person", "dog"])


def test_the_size_is_that_of_the_upright_photo(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert client.score(photo(exif=exif.tobytes())).size == (100, 200)


def test_coco_results_are_in_pixels(client):
    """Labels without a category are left out."""
    (item,) = client.score(photo()).to_coco(7, {"person": 3})
    assert (item["image_id"], item["category_id"], item["score"]) == (7, 3, 0.92)
    assert item["bbox"] == pytest.approx([20, 20, 60, 70])
    assert len(item["segmentation"][0]) == 18


def test_supervision_gets_masks(client):
    """With holes; nothing found is empty."""
    pytest.importorskip("supervision", reason="pip install './client[supervision]'")
    found = client.score(photo()).to_supervision()
    assert found.xyxy[0] == pytest.approx([20, 20, 80, 90])
    assert found.mask.shape == (2, 100, 200)
    assert found.mask[0][30, 50]
    assert not found.mask[0][50, 50]
    assert list(found.data["class_name"]) == ["person", "dog"]


def test_a_picture_is_tinted_inside_and_not_in_holes(client):
    drawn = np.asarray(client.score(photo()).draw(Image.new("RGB", (200, 100), (90, 90, 90))))
    assert tuple(drawn[30, 50]) != (90, 90, 90)
    assert tuple(drawn[50, 50]) == (90, 90, 90)
    assert tuple(drawn[2, 2]) == (90, 90, 90)


def test_a_refusal_for_load_is_retried_after_what_it_says(client, running):
    """Here a second."""
    running[1].error = Overloaded("full", retry_after_s=1)
    began = time.monotonic()
    assert len(client.score(photo()).objects) == 2
    assert time.monotonic() - began >= 1
    assert len(running[1].seen) == 2


def test_a_fault_of_the_service_is_retried_and_a_bad_photo_is_not(client, running):
    running[1].error = StageFailed("lost")
    assert client.score(photo()).objects
    assert len(running[1].seen) == 2
    running[1].error = ImageError("The image is damaged.")
    with pytest.raises(ScoringError) as caught:
        client.score(photo())
    assert (caught.value.code, caught.value.status) == ("image_not_decodable", 422)
    assert len(running[1].seen) == 3


class NewProxy(BaseHTTPRequestHandler):
    """Knows no application in its first two answers, in HAProxy's words."""

    answers = (404, b"Path '/score' not found."), (404, b"Path '/score' not found."), (200, b'[{"boxes": []}]')

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.server.left.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_only_a_404_of_the_proxy_is_retried(running, monkeypatch):
    """The service's own 404 says that the address is wrong."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    with HTTPServer(("127.0.0.1", 0), NewProxy) as proxy:
        proxy.left = list(NewProxy.answers)
        threading.Thread(target=proxy.serve_forever).start()
        assert Client(f"http://127.0.0.1:{proxy.server_port}").score(photo()).objects == []
        proxy.shutdown()
        assert proxy.left == []
    with pytest.raises(ScoringError) as caught:
        Client(f"{running[0]}/elsewhere").score(photo())
    assert (caught.value.code, caught.value.status) == ("not_found", 404)


def test_retries_end_after_the_patience(running, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    running[1].error = Overloaded("full", retry_after_s=9)
    with pytest.raises(ScoringError) as caught:
        Client(running[0], patience_s=1).score(photo())
    assert (caught.value.code, caught.value.status) == ("overloaded", 503)


def test_no_connection_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(ScoringError, match="does not answer") as caught:
        Client("http://127.0.0.1:9").score(photo())
    assert caught.value.code == "no_connection"


def test_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("SCORING_KEY", "right")
    with page_service(auth={"keys_env": ["SCORING_KEY"]}) as (url, _):
        assert Client(url, "right").score(photo()).objects
        with pytest.raises(ScoringError) as caught:
            Client(url, "wrong").score(photo())
        assert caught.value.status == 401


def test_many_photos_keep_their_order_and_a_missing_one_stops_nobody(client, tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for path in paths[1:]:
        path.write_bytes(photo())
    results = dict(client.score_many(paths, in_flight=3))
    assert list(results) == paths
    assert isinstance(results[paths[0]].error, FileNotFoundError)
    assert all(len(results[path].objects) == 2 for path in paths[1:])


def test_neither_torch_nor_ray_is_imported():
    import subprocess

    code = "import sys, rtmdet_ins_client; print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="client", env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
