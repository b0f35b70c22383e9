"""The client against the service's own HTTP front, with a stub behind it."""

import dataclasses
import io
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rtmdet_ins_client import Client, Result, ScoringError
from rtmdet_ins_client import client as module

from deployments.settings import Settings
from pipeline.errors import ImageError, Overloaded, StageFailed
from pipeline.images.decode import DecodeLimits, decode_image
from tests.support.odd_images import HEIGHT, WIDTH, odd_images, picture, stored_with
from tests.support.page_service import PageIngress, page_service
from tests.support.pages import PAGES, REPOSITORY, blocks
from tests.support.scripted_service import OK, answer, error, scripted_service

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
    for given, labels in (
        (tmp_path / "a.jpg", ["person", "dog"]),
        (str(tmp_path / "a.jpg"), ("person", "dog")),
        (photo(), np.array(["person", "dog"])),
        (Image.new("RGB", (200, 100)), ["person", "dog"]),
    ):
        result = client.score(given, score_threshold=np.float64(0.5), closed=False, labels=labels)
        assert [(item.label, item.score) for item in result.objects] == [("person", 0.92), ("dog", 0.71)]
        assert result.size == (200, 100)
    params = running[1].seen[-1][1]
    assert (params.score_threshold, params.closed, params.labels) == (0.5, False, ["person", "dog"])


def test_the_url_of_azureml(client):
    """With /score at its end, as AzureML's portal shows it; one without a scheme is told at once, not after five tries."""
    assert Client(f"{client.url}/score").score(photo()).objects
    with pytest.raises(ValueError, match=r"'127\.0\.0\.1:8000' is not a base URL"):
        Client("127.0.0.1:8000")


@pytest.mark.parametrize("name", ORIENTED)
def test_the_size_is_that_of_the_upright_photo(client, name):
    """Of a file and of an image that Pillow opened; a picture of it is upright, too."""
    data = ORIENTED[name].data
    for given in (data, bytearray(data), memoryview(data), Image.open(io.BytesIO(data))):
        result = client.score(given)
        assert result.size == (WIDTH, HEIGHT)
        assert result.draw(given).size == (WIDTH, HEIGHT)


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


@pytest.mark.usefixtures("supervision")
def test_supervision_gets_masks(client):
    """With holes; nothing found is empty."""
    found = client.score(photo()).to_supervision()
    assert found.xyxy[0] == pytest.approx([20, 20, 80, 90])
    assert found.mask.shape == (2, 100, 200)
    assert found.mask[0][30, 50]
    assert not found.mask[0][50, 50]
    assert list(found.data["class_name"]) == ["person", "dog"]
    assert (list(found.class_id), found.confidence.tolist()) == ([1, 0], pytest.approx([0.92, 0.71]))
    numbered = client.score(photo()).to_supervision({"dog": 17})
    assert (list(numbered.class_id), list(numbered.data["class_name"])) == ([17], ["dog"])
    nothing = client.score(photo()).to_supervision({})
    assert nothing.is_empty()
    assert list(nothing.data["class_name"]) == []


def test_a_picture_is_tinted_inside_and_not_in_holes(client):
    drawn = np.asarray(client.score(photo()).draw(Image.new("RGB", (200, 100), (90, 90, 90))))
    assert tuple(drawn[30, 50]) != (90, 90, 90)
    assert tuple(drawn[50, 50]) == (90, 90, 90)
    assert tuple(drawn[2, 2]) == (90, 90, 90)


def test_a_fault_of_the_service_is_retried_and_a_bad_photo_is_not(client, running):
    """As the service's own front says it; every case is in tests/test_retries.py."""
    for fault in (StageFailed("lost"), Overloaded("full", retry_after_s=0)):
        running[1].seen.clear()
        running[1].error = fault
        assert client.score(photo()).objects
        assert len(running[1].seen) == 2
    running[1].error = ImageError("The image is damaged.")
    with pytest.raises(ScoringError) as caught:
        client.score(photo())
    assert (caught.value.code, caught.value.status) == ("image_not_decodable", 422)
    assert len(running[1].seen) == 3


def test_a_caller_that_stops_early_waits_for_those_in_flight(running, monkeypatch):
    """Not for the rest."""
    asked = []
    client = Client(running[0])

    def slow(*_):
        asked.append(1)
        time.sleep(0.2)
        return Result([], (0, 0))

    monkeypatch.setattr(client, "_score", slow)
    for _ in client.score_many([photo()] * 20, in_flight=2):
        break
    assert 1 <= len(asked) <= 4


@pytest.mark.parametrize("how", [GeneratorExit, ValueError, KeyboardInterrupt])
def test_a_caller_that_stops_early_ends_the_retries(how):
    """However it leaves; what it asks later is tried again."""
    with scripted_service(OK, error(503, "overloaded", retry_after=60)) as service:
        client = Client(service.url)
        results = client.score_many([photo()] * 20, in_flight=1)
        next(results)
        while len(service.asked) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(how):
            results.throw(how)
        assert time.monotonic() - began < 5
        service.play(error(503, "overloaded", retry_after=1), OK)
        assert client.score(photo()).objects == []


def test_the_end_of_a_with_block_ends_all_retries():
    """Of results that nobody takes any more, too, whose threads Python would wait for when it ends."""
    code = """if True:
        from rtmdet_ins_client import Client
        with Client({url!r}) as client:
            results = client.score_many([b"photo"] * 20, in_flight=1)
            next(results)
            raise SystemExit(3)
    """
    with scripted_service(OK, error(503, "overloaded", retry_after=60)) as service:
        done = subprocess.run([sys.executable, "-c", code.format(url=service.url)], cwd="client", timeout=30, check=False)
    assert done.returncode == 3


def test_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("SCORING_KEY", "right")
    with page_service(auth={"keys_env": ["SCORING_KEY"]}) as (url, _):
        assert Client(url, "right").score(photo()).objects
        assert Client(url, "right\r\n").score(photo()).objects, "as read from a file"
        with pytest.raises(ScoringError) as caught:
            Client(url, "wrong").score(photo())
        assert caught.value.status == 401
        with pytest.raises(ValueError, match="more than one line") as caught:
            Client(url, "right\nleft")
        assert "right" not in str(caught.value)


def test_a_wrong_url_is_reported_at_once():
    """By the code that says that nothing was sent."""
    with pytest.raises(ScoringError, match="cannot be sent") as caught:
        Client("http://").score(photo())
    assert caught.value.code == "not_sent"


def test_errors_survive_pickling():
    """As multiprocessing needs."""
    with scripted_service(error(422, "url_refused")) as service, pytest.raises(ScoringError) as caught:
        Client(service.url).score(photo())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.code, again.status, str(again)) == (type(caught.value), "url_refused", 422, "no (url_refused)")


def test_an_isolated_error_is_an_error():
    """`on_error="isolate"` changes nothing for one photo: no empty result that looks like a photo of nothing."""
    bad = answer(200, [{"boxes": [], "error": {"code": "image_not_decodable", "message": "The image is damaged."}}])
    with scripted_service(bad) as service:
        with pytest.raises(ScoringError, match="damaged") as caught:
            Client(service.url).score(photo(), on_error="isolate")
        assert (caught.value.code, caught.value.status) == ("image_not_decodable", 200)
        ((_, result),) = Client(service.url).score_many([photo()], on_error="isolate")
        assert str(result.error) == str(caught.value)


def test_a_url_is_fetched_by_the_service(client, running):
    """With the same params; its size is not known, but can be given."""
    result = client.score("HTTPS://example.com/photo.jpg", score_threshold=0.8, closed=False, labels=["person", "dog"])
    images, params, *_ = running[1].seen[-1]
    assert images == ["HTTPS://example.com/photo.jpg"]
    assert (params.score_threshold, params.closed, params.labels) == (0.8, False, ["person", "dog"])
    assert [item.label for item in result.objects] == ["person"]
    with pytest.raises(ValueError, match="size of the photo is not known"):
        result.to_coco(1, {"person": 1})
    (item,) = dataclasses.replace(result, size=(200, 100)).to_coco(1, {"person": 1})
    assert item["bbox"] == pytest.approx([20, 20, 60, 70])


def test_info(client):
    """What the service says of itself, with its limits."""
    assert client.info()["classes"] == ["person"]
    assert client.info()["limits"]["max_body_mb"] == Settings().ingress.max_body_mb


@pytest.fixture(scope="module")
def not_turning():
    """A service with `image_loader.exif_orientation: false`; counts how often it was asked for /info."""
    ingress, asked = PageIngress(), []
    ingress.settings = Settings.model_validate({"image_loader": {"exif_orientation": False}})

    async def model_info():
        asked.append(1)
        return SimpleNamespace(as_dict=lambda: {})

    ingress.model_info = model_info
    with page_service(ingress) as (url, _):
        yield url, asked, ingress


@pytest.mark.parametrize("name", ORIENTED)
def test_photos_of_a_service_that_does_not_turn_them(not_turning, name):
    """Size and picture are those of the stored pixels, as the service decodes them; of an image that Pillow opened, too."""
    url, asked, ingress = not_turning
    client, data, limits = Client(url), ORIENTED[name].data, DecodeLimits(exif_orientation=False)
    pixels, (height, width) = decode_image(data, limits)
    asked.clear()
    for given in (data, bytearray(data), memoryview(data), Image.open(io.BytesIO(data))):
        result = client.score(given)
        assert result.size == (width, height)
        sent, _ = decode_image(ingress.seen[-1][0][0], limits)
        assert np.abs(sent.astype(int) - pixels).mean() < 2
        drawn = np.asarray(dataclasses.replace(result, objects=[]).draw(given))
        assert drawn.shape == pixels.shape
        assert np.abs(drawn[..., ::-1].astype(int) - pixels).mean() < 2
    assert len(asked) <= 1


def test_a_photo_without_orientation_asks_nothing(not_turning):
    url, asked, _ = not_turning
    asked.clear()
    client = Client(url)
    assert [client.score(given).size for given in (photo(), Image.new("RGB", (200, 100)))] == [(200, 100)] * 2
    assert not asked


def test_a_gateway_without_info():
    """Photos count as turned, which is the default."""
    with scripted_service(error(403, "forbidden"), OK) as service:
        client = Client(service.url)
        for _ in range(2):
            assert client.score(ORIENTED["JPEG EXIF 6"].data).size == (WIDTH, HEIGHT)
    assert [path for _, path, *_ in service.asked] == ["/info", "/score", "/score"]


def test_the_readme_runs(running, tmp_path):
    """Its code as it stands; only the address is changed."""
    (code,) = blocks("python", PAGES[REPOSITORY / "client/README.md"])
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(photo())
    command = [sys.executable, "-c", code.replace("http://127.0.0.1:8000", running[0])]
    environment = {"PYTHONPATH": str(REPOSITORY / "client")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    person, _, first, second, classes = done.stdout.splitlines()
    assert person.startswith("person 0.92 (0.1, 0.2, ")
    assert (first, second, classes) == ("a.jpg 2", "b.jpg 2", "['person']")
    assert (tmp_path / "outlines.png").stat().st_size


def test_what_is_not_a_photo_does_not_stop_the_others(client):
    """Whatever a caller put into the list."""
    results = [result for _, result in client.score_many([photo(), None, photo()])]
    assert [type(result.error) for result in results] == [type(None), TypeError, type(None)]


@pytest.mark.parametrize("one", ["photo.jpg", photo(), Path("photo.jpg"), Image.new("RGB", (2, 2))])
def test_many_of_one_photo_are_refused(client, one):
    """A path is not a list of its characters."""
    with pytest.raises(TypeError, match="not a single"):
        client.score_many(one)


def test_files_and_urls_take_the_same_params(client, running):
    """Numbers of NumPy, one label as text, any collection of labels; an empty one, which a query cannot express, is refused."""
    for given in (photo(), bytearray(photo()), "https://example.com/photo.jpg", "data:image/png;base64,AAAA"):
        client.score(given, score_threshold=np.float32(0.5), max_detections=np.int64(7), labels="dog")
        client.score(given, labels={"dog"})
        (_, first, *_), (_, second, *_) = running[1].seen[-2:]
        assert (first.score_threshold, first.max_detections, first.labels, second.labels) == (0.5, 7, ["dog"], ["dog"])
        with pytest.raises(ValueError, match="labels is empty"):
            client.score(given, labels=[])


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_time(seconds):
    """Told when the client is made, not at its first request."""
    with pytest.raises(ValueError, match="deadline_s must be"):
        Client("http://127.0.0.1:8000", deadline_s=seconds)


def test_errors_have_the_documented_type():
    """No private class in a traceback; what another server sent is named."""
    for step in (error(422, "url_refused"), answer(200, "<html>", **{"content-type": "text/html"})):
        with scripted_service(step) as service, pytest.raises(ScoringError) as caught:
            Client(service.url).score(photo())
        assert type(caught.value) is ScoringError
    assert "text/html instead of JSON" in str(caught.value)


@pytest.mark.parametrize(
    "document", [[{"boxes": None}], [{"boxes": ["person"]}], [{"boxes": [{"label": "person"}]}], [], {"boxes": []}, None], ids=str
)
def test_json_of_another_service_is_reported(document):
    """Also where only its innermost part differs."""
    with scripted_service(answer(200, document)) as service, pytest.raises(ScoringError) as caught:
        Client(service.url).score(photo())
    assert (caught.value.code, caught.value.status) == ("not_this_service", 200)


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
    code = "import sys, rtmdet_ins_client; print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="client", env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
