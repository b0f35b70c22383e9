"""Photos as they are and pictures, through the real service."""

import io

import numpy as np
import pytest
import requests
from PIL import Image

from tests.support.odd_images import encode
from tests.support.request_body import as_body

JPEG = {"content-type": "image/jpeg"}


def test_a_photo_as_it_is_has_the_answer_of_its_base64(service, photo):
    """As a body and as a form; params of the query count."""
    url = f"{service.url}/score"
    expected = requests.post(url, json=as_body([photo], score_threshold=0.4), timeout=60).json()
    body = requests.post(f"{url}?score_threshold=0.4", data=photo, headers=JPEG, timeout=60)
    form = requests.post(url, files=[("image", photo)], data={"score_threshold": "0.4"}, timeout=60)
    assert body.json() == form.json() == expected
    assert "person" in body.text


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_a_picture_is_the_photo_with_its_person_on_it(service, photo, form):
    """Of bytes and of a URL alike: as large as the photo, changed where the person is."""
    response = requests.post(f"{service.url}/score", data=photo, headers=JPEG | {"accept": f"image/{form}"}, timeout=60)
    assert (response.status_code, response.headers["content-type"]) == (200, f"image/{form}"), response.text[:300]
    picture, original = Image.open(io.BytesIO(response.content)), Image.open(io.BytesIO(photo))
    assert picture.size == original.size
    changed = np.abs(np.asarray(picture, int) - np.asarray(original.convert("RGB"), int)).max(axis=2) > 20
    assert 0.2 < changed.mean() < 0.95


def test_a_url_is_drawn_too(service, image_server):
    """The ImageLoader has the bytes."""
    body = as_body([f"{image_server}/photo.jpg"])
    response = requests.post(f"{service.url}/score?draw=1", json=body, timeout=60)
    assert response.headers["content-type"] == "image/png", response.text[:300]


def test_a_large_photo_is_drawn_smaller(service, photo):
    large = encode(Image.open(io.BytesIO(photo)).convert("RGB").resize((3000, 2000)))
    response = requests.post(f"{service.url}/score?draw=1", data=large, headers=JPEG, timeout=60)
    assert Image.open(io.BytesIO(response.content)).size == (2048, 1365)


def test_a_damaged_photo_is_refused_in_json(service):
    response = requests.post(f"{service.url}/score?draw=1", data=b"\xff\xd8\xff\xe0 no", headers=JPEG, timeout=60)
    assert (response.status_code, response.json()["code"]) == (422, "image_not_decodable")


def test_a_browser_gets_the_page_past_the_proxy(service):
    """HAProxy lets the page and its files through as they are."""
    page = requests.get(service.url, headers={"accept": "text/html"}, timeout=30)
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert requests.get(f"{service.url}/playground/app.js", timeout=30).headers["content-type"].startswith("text/javascript")
    assert requests.get(f"{service.url}/docs/swagger-ui.css", timeout=30).ok
    assert requests.get(service.url, timeout=30).text == "Healthy"
