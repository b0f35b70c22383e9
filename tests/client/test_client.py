"""The client against the service's own HTTP front, with a stub behind it."""

import io
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from matplotlib.path import Path as Path2D
from PIL import Image
from pycocotools import mask as coco_mask
from rtmdet_ins_client import Client, Found, Result, ScoringError
from rtmdet_ins_client import client as module
from rtmdet_ins_client import result as result_module

from pipeline.errors import ImageError, Overloaded, StageFailed
from pipeline.images.decode import DecodeLimits, decode_image
from tests.support.odd_images import HEIGHT, WIDTH, odd_images, picture, stored_with
from tests.support.page_service import page_service

ORIENTED = {name: odd for name, odd in odd_images().items() if any(way in name for way in ("EXIF", "XMP", "BYTE"))}


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


def test_the_url_of_azureml(client):
    """With /score at its end, as AzureML's portal shows it; one without a scheme is told at once, not after five tries."""
    assert Client(f"{client.url}/score").score(photo()).objects
    with pytest.raises(ValueError, match=r"'127\.0\.0\.1:8000' is no base URL"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize("name", ORIENTED)
def test_the_size_is_that_of_the_upright_photo(client, name):
    """Of a file and of an image that Pillow opened; a picture of it is upright, too."""
    data = ORIENTED[name].data
    for given in (data, Image.open(io.BytesIO(data))):
        result = client.score(given)
        assert result.size == (WIDTH, HEIGHT)
        assert result.draw(given).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_images_of_every_mode_are_sent(client, running, mode):
    """In a file that the service reads, with the colours that Pillow sees."""
    image = picture().convert("RGBA").convert("RGBa") if mode == "RGBa" else picture().convert("P" if mode == "PA" else mode)
    image = image.convert(mode)
    client.score(image)
    sent, _ = decode_image(running[1].seen[-1][0][0], DecodeLimits())
    seen = image.convert("RGBA") if mode == "RGBa" else image
    assert np.abs(sent[..., ::-1].astype(int) - np.asarray(seen.convert("RGB"))).mean() < 2


def test_an_opened_image_is_sent_upright_once(client, running):
    """Its metadata is not sent with it."""
    client.score(Image.open(io.BytesIO(stored_with(6, "TIFF", image=picture().convert("CMYK"), tiffinfo={0x0112: 6}))))
    sent = Image.open(io.BytesIO(running[1].seen[-1][0][0]))
    assert (sent.size, sent.getexif().get(0x0112)) == ((WIDTH, HEIGHT), None)


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
    assert list(found.class_id) == [1, 0]
    numbered = client.score(photo()).to_supervision({"dog": 17})
    assert (list(numbered.class_id), list(numbered.data["class_name"])) == ([17], ["dog"])
    nothing = client.score(photo()).to_supervision({})
    assert nothing.is_empty()
    assert list(nothing.data["class_name"]) == []


@pytest.mark.parametrize("height_width", [(100, 200), (7, 1), (1, 7)], ids=str)
def test_run_lengths_are_masks(height_width):
    """`mask_format="rle"`: of many short runs and of few long ones."""
    for share in (0, 0.02, 0.5, 1):
        mask = (np.random.default_rng(7).random(height_width) < share).astype(np.uint8)
        rle = coco_mask.encode(np.asfortranarray(mask))
        decoded = result_module._rle_to_mask({"size": rle["size"], "counts": rle["counts"].decode()})
        np.testing.assert_array_equal(np.asarray(decoded) > 0, mask > 0)


def test_run_lengths_are_drawn_and_masks_for_supervision():
    """On a picture of another scale, too."""
    mask = np.zeros((100, 200), np.uint8)
    mask[60:, 100:] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    found = Found("person", 0.9, (0.5, 0.6, 1, 1), [], [], {"size": [100, 200], "counts": rle["counts"].decode()})
    drawn = np.asarray(Result([found], (200, 100)).draw(Image.new("RGB", (400, 200), (90, 90, 90))))
    assert tuple(drawn[180, 380]) != (90, 90, 90)
    assert tuple(drawn[180, 100]) == (90, 90, 90)
    pytest.importorskip("supervision", reason="pip install './client[supervision]'")
    np.testing.assert_array_equal(Result([found], (200, 100)).to_supervision().mask[0], mask > 0)


@pytest.mark.parametrize("radius", [3, 8, 40])
def test_polygons_fill_the_pixels_whose_centres_they_hold(radius):
    """Neither more nor fewer, over the picture's edge too: matplotlib's test of each centre."""
    random = np.random.default_rng(radius)
    for middle in ((50, 40), (2, 78)):
        angles, distances = np.sort(random.random(14)) * 2 * np.pi, radius * (0.5 + random.random(14))
        ring = np.array(middle) + random.random(2) + np.column_stack([np.cos(angles), np.sin(angles)]) * distances[:, None]
        hole = np.array(middle) + (ring - ring.mean(axis=0)) / 3
        found = Found("a", 0.9, (0, 0, 1, 1), [(ring / (100, 80)).ravel().tolist()], [(hole / (100, 80)).ravel().tolist()])
        y, x = np.mgrid[0:80, 0:100] + 0.5
        inside, in_hole = (
            Path2D(np.vstack([edge, edge[:1]])).contains_points(np.column_stack([x.ravel(), y.ravel()])) for edge in (ring, hole)
        )
        mask = np.asarray(Result([found], (100, 80))._mask(found)) > 0
        np.testing.assert_array_equal(mask, (inside & ~in_hole).reshape(80, 100))


def test_a_square_has_its_pixels():
    """Between pixels 10 and 20 there are ten."""
    found = Found("a", 0.9, (0, 0, 1, 1), [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.1]], [])
    mask = np.asarray(Result([found], (100, 100))._mask(found)) > 0
    assert mask.sum() == 100
    assert mask[10:20, 10:20].all()


def test_an_unknown_size_is_told():
    """Not taken for zero pixels; an answer without objects needs none."""
    found = Found("person", 0.9, (0, 0, 1, 1), [[0, 0, 1, 0, 1, 1]], [])
    assert Result([], (0, 0)).to_coco(1, {"person": 1}) == []
    with pytest.raises(ValueError, match="size of the photo is not known"):
        Result([found], (0, 0)).to_coco(1, {"person": 1})


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


def test_a_redirect_is_told(running):
    """Followed, the POST would be a GET."""

    class Redirect(NewProxy):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(301)
            self.send_header("location", f"{running[0]}/score")
            self.send_header("content-length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Redirect) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with pytest.raises(ScoringError, match=rf"redirects to {running[0]}/score\. \(redirected\)"):
            Client(f"http://127.0.0.1:{proxy.server_port}").score(photo())
        proxy.shutdown()


def test_a_caller_that_stops_early_does_not_wait_for_the_rest(running, monkeypatch):
    """Only for the photos in flight."""
    asked = []
    client = Client(running[0])

    def slow(data, _params):
        asked.append(data)
        time.sleep(0.2)
        return {"boxes": []}

    monkeypatch.setattr(client, "_ask", slow)
    for _ in client.score_many([photo()] * 20, in_flight=2):
        break
    assert len(asked) <= 4


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


def test_what_is_no_photo_stops_nobody(client):
    """Whatever a caller put into the list."""
    results = [result for _, result in client.score_many([photo(), None, photo()])]
    assert [type(result.error) for result in results] == [type(None), TypeError, type(None)]


def test_many_photos_keep_their_order_and_a_missing_one_stops_nobody(client, tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for path in paths[1:]:
        path.write_bytes(photo())
    results = dict(client.score_many(paths, in_flight=3))
    assert list(results) == paths
    assert isinstance(results[paths[0]].error, FileNotFoundError)
    assert all(len(results[path].objects) == 2 for path in paths[1:])


def test_many_in_flight_keep_their_connections(client, caplog):
    """No connection is thrown away, about which urllib3 warns."""
    results = [result for _, result in client.score_many([photo()] * 60, in_flight=20)]
    assert not any(result.error for result in results)
    assert "Connection pool is full" not in caplog.text


def test_neither_torch_nor_ray_is_imported():
    import subprocess

    code = "import sys, rtmdet_ins_client; print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="client", env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
