"""The real service over real sockets: the way of one image, the contract, the errors, the batches."""

import base64
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from pycocotools import mask as coco_mask
from shapely.geometry import Polygon, box

from pipeline.model.zoo import hash_of_file
from tests.support.request_body import as_body

JSON = {"content-type": "application/json"}


@pytest.fixture
def score(service):
    def post(images, headers=None, **params):
        return requests.post(f"{service.url}/score", json=as_body(images, **params), headers=headers or {}, timeout=60)

    return post


def test_a_person_is_outlined(score, photo):
    """The demo photo: one clean person, box, label, score and an outline that fills most of its box."""
    response = score([photo])
    assert response.status_code == 200
    (image,) = response.json()
    (person,) = image["boxes"]
    assert person["label"] == "person"
    assert person["score"] > 0.5
    assert set(person) == {"box", "label", "score", "polygon"}
    corners = person["box"]
    frame = box(corners["topX"], corners["topY"], corners["bottomX"], corners["bottomY"])
    outline = Polygon(np.reshape(person["polygon"][0], (-1, 2)))
    assert outline.is_valid
    assert 0.4 < outline.area < 1
    assert outline.intersection(frame).area > 0.9 * outline.area


def test_model_card_request(service, photos):
    """AzureML's sample client: base64.encodebytes with line breaks, index, empty params, two images; two answers in order."""
    body = as_body(photos[:2])
    body["input_data"]["data"] = [base64.encodebytes(photo).decode() for photo in photos[:2]]
    response = requests.post(f"{service.url}/score", json=body, timeout=60)
    assert response.status_code == 200
    assert [set(image) for image in response.json()] == [{"boxes"}, {"boxes"}]
    single = requests.post(f"{service.url}/score", json=as_body(photos[:1]), timeout=60).json()
    assert single[0]["boxes"][0]["box"] == pytest.approx(response.json()[0]["boxes"][0]["box"], abs=0.01)


def test_rows_and_urls(score, image_server, photo):
    """Rows of one cell, and a URL beside base64, give the same objects."""
    by_url, by_base64 = score([f"{image_server}/photo.jpg", photo]).json()
    assert by_url == by_base64


def test_params_reach_every_stage(score, photo):
    """Thresholds and labels filter, tolerance coarsens, decimals round, RLE decodes to the mask."""
    fine = score([photo], polygon_tolerance_px=0.0, holes="rings").json()[0]["boxes"][0]
    coarse = score([photo], polygon_tolerance_px=4.0, decimals=3).json()[0]["boxes"][0]
    assert len(coarse["polygon"][0]) < len(fine["polygon"][0]) / 2
    assert all(round(value, 3) == value for value in coarse["polygon"][0])
    assert score([photo], score_threshold=0.999).json() == [{"boxes": []}]
    assert score([photo], labels=[]).json() == [{"boxes": []}]
    rle = score([photo], mask_format="rle").json()[0]["boxes"][0]["rle"]
    height, width = rle["size"]
    area = coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}) / (height * width)
    assert area == pytest.approx(sum(map(ring_area, fine["polygon"])) - sum(map(ring_area, fine["holes"])), rel=0.02)


def ring_area(ring):
    """Area of a flat x1 y1 x2 y2 … ring, as a fraction of the image."""
    return Polygon(np.reshape(ring, (-1, 2))).area


def test_unknown_label_lists_the_known(score, photo):
    """A class that the model does not have is a 400."""
    response = score([photo], labels=["zebra"])
    assert response.status_code == 400
    assert "person" in response.json()["message"]


def test_one_bad_image_fails_the_request_by_default(score, photo):
    """As AzureML does, and with the place of the bad one."""
    response = score([photo, b"not an image"])
    assert response.status_code == 422
    assert response.json()["code"] in ("image_not_decodable", "unsupported_image_format")
    assert [fault["index"] for fault in response.json()["errors"]] == [1]


def test_isolate_scores_the_rest(score, photo, image_server):
    """With on_error=isolate each bad image carries its own error, and the good one its person."""
    images = [b"not an image", photo, f"{image_server}/nowhere.jpg", "http://10.0.0.1/x.jpg", "!!", f"{image_server}/text.jpg"]
    answers = score(images, on_error="isolate").json()
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes[1] is None
    assert codes[2:5] == ["fetch_failed", "url_refused", "invalid_base64"]
    assert codes[0] == codes[5]
    assert codes[0] in ("image_not_decodable", "unsupported_image_format")
    assert len(answers[1]["boxes"]) == 1


def test_no_images_no_answers(score):
    """An empty table is an empty list."""
    assert score([]).json() == []


def test_headers(score, photo):
    """Ids are echoed once, and the stages' times are plausible."""
    response = score([photo], headers={"x-request-id": "my-id"})
    assert response.headers["x-request-id"] == "my-id"
    assert response.headers["x-ms-request-id"] == "my-id"
    times = {name: float(ms) for name, ms in (entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))}
    assert times["decode"] > 0
    assert times["detect"] > 1
    assert sum(times.values()) <= float(response.headers["x-ms-run-fn-exec-ms"]) + 1


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(
            {
                "connection": "Upgrade, HTTP2-Settings",
                "upgrade": "h2c",
                "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
            },
            id="HttpClient",
        ),
        pytest.param({"accept": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"}, id="HttpURLConnection"),
    ],
)
def test_clients_in_java(score, photo, headers):
    """Both of Java's clients get JSON: the first offers HTTP/2, the second asks for what browsers showed."""
    assert score([photo], headers=headers).json()[0]["boxes"]


def test_deadline_is_a_json_408(score, photo):
    """A request that cannot be done in its own time says so in our words."""
    response = score([photo] * 32, headers={"x-request-timeout-seconds": "0.05"})
    assert response.status_code == 408
    assert response.json()["code"] == "deadline_exceeded"


def test_huge_content_length_is_refused_early(service):
    """A Content-Length of 10 GB is answered with 413 once HAProxy's buffer is full."""
    where = urlsplit(service.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        connection.sendall(
            f"POST /score HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: 10000000000\r\n\r\n{{{300_000 * ' '}".encode()
        )
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_routes(service):
    """Liveness, readiness, info and documents of the running service."""
    assert requests.get(f"{service.url}/", timeout=10).text == "Healthy"
    assert requests.get(f"{service.url}/ready", timeout=10).json() == {"status": "ready"}
    info = requests.get(f"{service.url}/info", timeout=10).json()
    assert info["model"] == "rtmdet-ins_nano_person"
    assert info["classes"] == ["person"]
    assert info["weights"] == hash_of_file("rtmdet-ins_nano_person")
    assert info["engine"] in ("openvino", "torch")
    assert requests.get(f"{service.url}/swagger.json", timeout=10).json()["swagger"] == "2.0"
    assert requests.get(f"{service.url}/openapi.json", timeout=10).json()["openapi"].startswith("3.")
    missing = requests.get(f"{service.url}/nowhere", timeout=10)
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
