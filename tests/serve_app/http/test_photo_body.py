"""Photos as they are, over the HTTP front: image bodies, forms, params in the query; what is refused, and how."""

import pytest

from deployments.settings import Settings
from pipeline.types import DrawnImage
from tests.support.fake_ingress import FakeIngress, client_for

JPEG = b"\xff\xd8\xff\xe0 a photo, as far as the front knows"


@pytest.fixture
def ingress():
    return FakeIngress()


@pytest.fixture
async def client(ingress):
    settings = Settings.model_validate({"ingress": {"max_images_per_request": 3, "max_body_mb": 0.01}})
    async with client_for(ingress, settings) as client:
        yield client


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "IMAGE/WEBP", "image/tiff", "application/octet-stream"])
async def test_image_body_is_one_photo(client, ingress, kind):
    """The same answer as for JSON: a list of one."""
    response = await client.post("/score", content=JPEG, headers={"content-type": kind})
    assert (response.status_code, response.json()) == (200, [{"boxes": []}])
    assert ingress.seen[0][0] == [JPEG]


async def test_params_stand_in_the_query(client, ingress):
    """Numbers and booleans as text, labels as often as there are some."""
    query = "score_threshold=0.5&max_detections=7&labels=a&labels=b%20c&closed=false&holes=rings&draw=0"
    await client.post(f"/score?{query}", content=JPEG, headers={"content-type": "image/jpeg"})
    params = ingress.seen[0][1]
    assert (params.score_threshold, params.max_detections, params.labels) == (0.5, 7, ["a", "b c"])
    assert (params.closed, params.holes) == (False, "rings")


async def test_form_holds_photos_in_order_and_params(client, ingress):
    """As `curl -F image=@a.jpg -F image=@b.png -F score_threshold=0.4` sends it."""
    files = [("image", ("a.jpg", JPEG + b"1", "image/jpeg")), ("other", ("b.png", JPEG + b"2", "image/png"))]
    response = await client.post("/score?max_detections=2", files=files, data={"score_threshold": "0.4"})
    assert response.json() == [{"boxes": []}, {"boxes": []}]
    images, params, *_ = ingress.seen[0]
    assert images == [JPEG + b"1", JPEG + b"2"]
    assert (params.score_threshold, params.max_detections) == (0.4, 2)


async def test_query_of_a_json_request_is_ignored(client, ingress):
    """The contract's route stays as AzureML's."""
    body = {"input_data": {"columns": ["image"], "data": ["aGk="]}}
    assert (await client.post("/score?score_threshold=x", json=body)).status_code == 200
    assert ingress.seen[0][1].score_threshold is None


def image(content=JPEG, kind="image/jpeg"):
    return {"content": content, "headers": {"content-type": kind}}


PART = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n' + JPEG + b"\r\n"


@pytest.mark.parametrize(
    ("query", "request_", "status", "code", "said"),
    [
        pytest.param("", image(kind="image/heic"), 415, "unsupported_media_type", "application/json, multipart/form-data or an", id="HEIC"),
        pytest.param("", image(kind="text/plain"), 415, "unsupported_media_type", "got 'text/plain'", id="text"),
        pytest.param("", image(b""), 400, "invalid_request", "The request body is empty", id="empty body"),
        pytest.param("speed=1", image(), 400, "invalid_request", "unknown key(s) 'speed'; known keys: score_threshold", id="unknown"),
        pytest.param("score_threshold=x", image(), 400, "invalid_request", "'params.score_threshold'", id="no number"),
        pytest.param("holes=a&holes=b", image(), 400, "invalid_request", "'params.holes' is given twice", id="twice"),
        pytest.param("", image(b"x" * 11_000), 413, "body_too_large", "0.01 MB (ingress.max_body_mb)", id="large"),
        pytest.param("", image(JPEG, "multipart/form-data"), 400, "invalid_request", "boundary", id="no boundary"),
        pytest.param("", image(JPEG, "multipart/form-data; boundary=b"), 400, "invalid_request", "multipart form", id="no form"),
        pytest.param("", image(PART, "multipart/form-data; boundary=b"), 400, "invalid_request", "no closing boundary", id="cut off"),
        pytest.param("", {"files": [("i", (None, "1"))]}, 400, "invalid_request", "holds no file (a part with a filename)", id="no file"),
        pytest.param("", {"files": [("i", ("a", b""))]}, 400, "invalid_request", "The file of field 'i' is empty", id="empty file"),
        pytest.param("", {"files": [("i", ("a", JPEG))] * 4}, 413, "too_many_images", "4 images; the limit is 3", id="one too many"),
        pytest.param("", {"files": [("i", ("a", JPEG))] * 9}, 413, "too_many_images", "the limit is 3", id="far too many"),
    ],
)  # fmt: skip
async def test_refusals_say_what_to_do(client, ingress, query, request_, status, code, said):
    response = await client.post(f"/score?{query}", **request_)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert said in response.json()["message"]
    assert not ingress.seen
    assert ingress.counted == [code]


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        pytest.param("", "*/*", "json", id="curl"),
        pytest.param("", "image/png", "png", id="Accept PNG"),
        pytest.param("", "image/jpeg; q=0.9", "jpeg", id="Accept JPEG"),
        pytest.param("", "application/json, image/png", "json", id="JSON will do"),
        pytest.param("", "image/png; q=0.0, */*", "json", id="all but PNG"),
        pytest.param("", "application/json;q=0, image/png", "png", id="no JSON"),
        pytest.param("draw=1", "*/*", "png", id="draw"),
        pytest.param("draw=true", "image/jpeg", "jpeg", id="draw, JPEG"),
        pytest.param("draw=True", "*/*", "png", id="draw, as requests writes Python's True"),
        pytest.param("draw=0", "image/png", "json", id="not drawn"),
        pytest.param("", "image/png, application/json;q=0.1", "png", id="rather PNG than JSON"),
        pytest.param("", "image/jpeg;q=0.5, application/json; q=0.8", "json", id="rather JSON than JPEG"),
        pytest.param("", "image/png;q=0.1, image/jpeg;q=0.9", "jpeg", id="rather JPEG than PNG"),
        pytest.param("draw=1", "image/png;q=0.1, image/jpeg, application/json", "jpeg", id="draw, rather JPEG"),
        pytest.param("", "image/png;q=high", "png", id="no weight"),
        pytest.param("", "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "json", id="Java"),
        pytest.param("", "image/png, application/*;q=0.1", "json", id="any application type"),
        pytest.param("", "image/png, */*;q=0", "png", id="nothing else"),
    ],
)
async def test_a_picture_is_asked_for_by_accept_or_draw(client, ingress, query, accept, form):
    """Of a photo as it is and of AzureML's JSON alike."""
    ingress.answers = [DrawnImage(b"picture", f"image/{form}", {"detect": 2.0})] if form != "json" else None
    body = {"input_data": {"columns": ["image"], "data": ["aGk="]}}
    for request in ({"json": body}, {"content": JPEG, "headers": {"content-type": "image/jpeg"}}):
        headers = request.pop("headers", {}) | {"accept": accept}
        response = await client.post(f"/score?{query}", headers=headers, **request)
        assert ingress.seen[-1][3] == form
        assert response.headers["content-type"] == ("application/json" if form == "json" else f"image/{form}")
        assert "detect;dur=" in response.headers["server-timing"]
        assert (response.content == b"picture") == (form != "json")


async def test_all_accept_headers_count(client, ingress):
    """A header may be repeated instead of being a list."""
    ingress.answers = [DrawnImage(b"picture", "image/jpeg", {})]
    headers = [("content-type", "image/jpeg"), ("accept", "text/html"), ("accept", "image/jpeg")]
    assert (await client.post("/score", content=JPEG, headers=headers)).content == b"picture"
    assert ingress.seen[-1][3] == "jpeg"


@pytest.mark.parametrize(("accept", "form"), [("*/*", "png"), ("image/jpeg", "jpeg")])
async def test_draw_may_be_a_field(client, ingress, accept, form):
    """As `curl -F image=@a.jpg -F draw=1` sends it."""
    ingress.answers = [DrawnImage(b"picture", f"image/{form}", {})]
    fields = {"draw": "1", "score_threshold": "0.4"}
    response = await client.post("/score", files={"image": ("a", JPEG)}, data=fields, headers={"accept": accept})
    assert response.content == b"picture"
    assert (ingress.seen[-1][1].score_threshold, ingress.seen[-1][3]) == (0.4, form)


@pytest.mark.parametrize(
    ("query", "fields", "count", "said"),
    [
        ("draw=yes", {}, 1, "'draw' must be 1 or 0"),
        ("draw=1", {}, 2, "shows one photo; the request has 2"),
        ("draw=1&draw=0", {}, 1, "'draw' is given twice"),
        ("draw=1", {"draw": "1"}, 1, "'draw' is given twice"),
        ("", {"draw": "2"}, 1, "'draw' must be 1 or 0"),
        ("", {"draw": "1"}, 2, "shows one photo; the request has 2"),
    ],
)
async def test_a_picture_that_cannot_be_drawn_is_refused(client, ingress, query, fields, count, said):
    response = await client.post(f"/score?{query}", files=[("image", ("a", JPEG))] * count, data=fields)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert said in response.json()["message"]
    assert not ingress.seen
