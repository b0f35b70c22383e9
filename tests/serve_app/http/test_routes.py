"""The HTTP front over a fake ingress: routes, headers, the error table, limits while reading. No Ray, no network."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from deployments.settings import Settings
from pipeline.errors import (
    DeadlineExceeded,
    FetchError,
    ImageError,
    ImageFault,
    LimitExceeded,
    Overloaded,
    StageFailed,
)
from pipeline.types import DrawnImage, EncodedImage
from serve_app.http import body
from serve_app.http import routes as http
from serve_app.http.contract import parse_score_request
from serve_app.http.photo_body import parse_photos
from serve_app.http.responses import score_response
from serve_app.http.routes import http_app
from tests.support.fake_ingress import ANSWER, GOOD, FakeIngress, client_for


@pytest.fixture
def ingress():
    return FakeIngress()


@pytest.fixture
async def client(ingress):
    async with client_for(ingress) as client:
        yield client


async def test_score(client, ingress):
    """Images in, one object each out; every header of the contract is there."""
    response = await client.post("/score", json=GOOD, headers={"x-request-id": "abc"})
    assert response.status_code == 200
    assert response.json() == [{"boxes": []}, {"boxes": []}]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-ms-request-id"] == "abc"
    assert float(response.headers["x-ms-run-fn-exec-ms"]) > 0
    stages = [entry.split(";dur=") for entry in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["wait", "fetch", "decode", "queue", "detect", "polygonize", "encode"]
    assert [float(ms) for _, ms in stages][1:6] == [1, 2, 3, 4, 5]
    assert ingress.seen[0][0] == ["aGk=", "aGk="]


@pytest.mark.parametrize(
    ("sent", "used"),
    [
        ({"x-request-id": "a"}, "a"),
        ({"x-request-id": "a", "x-ms-client-request-id": "b"}, "b"),
        ({"x-request-id": "a", "x-ms-client-request-id": "b", "x-ms-request-id": "c"}, "c"),
    ],
)
async def test_request_ids(client, ingress, sent, used):
    """AzureML's headers come before x-request-id, which HAProxy makes where none came; the client's own is echoed."""
    response = await client.post("/score", json=GOOD, headers=sent)
    assert response.headers["x-ms-request-id"] == used
    assert response.headers.get("x-ms-client-request-id") == sent.get("x-ms-client-request-id")
    assert ingress.seen[0][2].request_id == used


@pytest.mark.parametrize("header", ["x-request-id", "x-ms-request-id", "x-ms-client-request-id"])
async def test_long_request_ids(client, header):
    """431, whichever header; what is echoed is cut."""
    response = await client.post("/score", json=GOOD, headers={header: "x" * 101})
    assert (response.status_code, response.json()["code"]) == (431, "header_too_large")
    assert header in response.json()["message"]
    assert max(len(response.headers.get(name, "")) for name in ("x-ms-request-id", "x-ms-client-request-id")) == 100


@pytest.mark.parametrize(
    ("error", "status", "behind"),
    [
        (ImageError("bad"), 424, "422"),
        (LimitExceeded("big", code="too_many_pixels"), 413, None),
        (Overloaded("full"), 429, None),
        (DeadlineExceeded("late"), 408, None),
        (StageFailed("oops"), 500, None),
    ],
)
async def test_azureml_status_codes(ingress, error, status, behind):
    """A setting for clients whose retries are written for managed endpoints; code and message stay."""
    ingress.error = error
    async with client_for(ingress, Settings(ingress={"azureml_status_codes": True})) as client:
        response = await client.post("/score", json=GOOD)
        assert (response.status_code, response.json()["code"]) == (status, error.code)
        assert response.headers.get("ms-azureml-model-error-statuscode") == behind
        broken = await client.post("/score", content=b"{}", headers={"content-type": "application/json"})
        assert (broken.status_code, broken.headers["ms-azureml-model-error-statuscode"]) == (424, "400")
        ingress.ready_error = DeadlineExceeded("no answer")
        assert (await client.get("/ready")).status_code == 503


async def test_browsers_of_other_origins(ingress, monkeypatch):
    """With `cors_origins` a preflight needs no key, and pages read answers, errors and their headers; without, nothing is said."""
    monkeypatch.setenv("PRIMARY", "sesame")
    settings = Settings(ingress={"cors_origins": ["https://app.example.com"], "auth": {"keys_env": ["PRIMARY"]}})
    origin = {"origin": "https://app.example.com"}
    asked = origin | {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with client_for(ingress, settings) as client:
        preflight = await client.options("/score", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
        refused = await client.post("/score", json=GOOD, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
        assert "x-ms-request-id" in refused.headers["access-control-expose-headers"]
        assert (await client.options("/score", headers=asked | {"origin": "https://evil.example"})).status_code == 400
        every = "authorization,azureml-model-deployment,content-type,traceparent,x-request-id,x-request-timeout-seconds"
        assert (await client.options("/score", headers=asked | {"access-control-request-headers": every})).status_code == 200
    async with client_for(ingress) as client:
        assert (await client.options("/score", headers=asked)).status_code == 405
        assert not [name for name in (await client.post("/score", json=GOOD, headers=origin)).headers if "access-control" in name]


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://app.example.com/page", ""])
def test_an_origin_is_scheme_and_host(origin):
    """Anything else would never match what browsers send."""
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(ingress={"cors_origins": [origin]})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("HTTPS://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("*", "*"),
    ],
)
def test_origins_are_compared_as_browsers_send_them(given, sent):
    assert Settings(ingress={"cors_origins": [given]}).ingress.cors_origins == [sent]


def test_wait_is_what_no_stage_accounts_for():
    """Of the image that its stages worked on longest, whichever stage was slowest in which image."""
    answers = [
        EncodedImage(b"{}", {"fetch": 1, "detect": 2}),
        EncodedImage(b"{}", {"fetch": 2, "detect": 9}),
        ImageFault(2, "c", "m"),
    ]
    for took_ms, wait in ((31, "wait;dur=20.00, "), (5, "wait;dur=0.00, ")):
        assert score_response(answers, took_ms).headers["server-timing"].startswith(wait + "fetch;dur=2.00")


async def test_timeout_header_becomes_the_deadline(client, ingress):
    """The client's own timeout reaches the ingress, seconds; a little less, so that the answer is ours and not Ray's."""
    for asked_s, most_s in ((2.0, 1.9), (20.0, 19.5)):
        await client.post("/score", json=GOOD, headers={"x-request-timeout-seconds": str(asked_s)})
        assert most_s - 0.5 < ingress.seen.pop()[2].remaining_s <= most_s


async def test_request_id_is_made_when_missing(client):
    """Without an id one is made, and differs between requests."""
    ids = {(await client.get("/")).headers["x-ms-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(ids)


async def test_isolated_fault_is_in_its_place(client, ingress):
    """An ImageFault among the answers becomes that image's error."""
    ingress.answers = [ANSWER, ImageFault(1, "image_not_decodable", "no image")]
    response = await client.post("/score", json=GOOD)
    assert response.json()[1] == {"boxes": [], "error": {"code": "image_not_decodable", "message": "no image"}}


def failure(error, *faults):
    error.faults = faults
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        pytest.param(DeadlineExceeded("late"), 408, "deadline_exceeded", id="408"),
        pytest.param(LimitExceeded("big", code="too_many_pixels"), 413, "too_many_pixels", id="413"),
        pytest.param(ImageError("bad"), 422, "image_not_decodable", id="422 decode"),
        pytest.param(FetchError("no", code="url_refused"), 422, "url_refused", id="422 url"),
        pytest.param(Overloaded("full", retry_after_s=7), 503, "overloaded", id="503"),
        pytest.param(Overloaded("full", retry_after_s=7, status=429), 429, "overloaded", id="429"),
        pytest.param(StageFailed("oops"), 500, "internal_error", id="500"),
    ],
)
async def test_scoring_errors(client, ingress, error, status, code):
    """Errors of scoring arrive with status, code, message and the images' own errors."""
    ingress.error = failure(error, ImageFault(1, code, "why"))
    response = await client.post("/score", json=GOOD)
    assert response.status_code == status
    assert response.json() == {
        "message": error.message,
        "code": code,
        "errors": [{"index": 1, "code": code, "message": "why"}],
    }
    assert response.headers.get("retry-after") == ("7" if status in (429, 503) else None)


async def test_errors_of_any_text_are_json(client, ingress):
    """Also of text that UTF-8 cannot express, which a caller by handle or another server may send."""
    ingress.error = failure(LimitExceeded("big \ud800", code="\udfff"), ImageFault(0, "c", "é \ud800"))
    response = await client.post("/score", json=GOOD)
    assert response.status_code == 413
    assert response.json() == {"message": "big ?", "code": "?", "errors": [{"index": 0, "code": "c", "message": "é ?"}]}
    ingress.error, ingress.answers = None, [ANSWER, ImageFault(1, "c", "no \ud800")]
    response = await client.post("/score", json=GOOD)
    assert response.json() == [{"boxes": []}, {"boxes": [], "error": {"code": "c", "message": "no ?"}}]


async def test_a_bug_is_a_500_that_tells_nothing(client, ingress):
    """An unforeseen exception gives JSON without its text."""
    ingress.error = RuntimeError("/secret/path")
    response = await client.post("/score", json=GOOD)
    assert response.status_code == 500
    assert response.json() == {"message": "The service failed on this request.", "code": "internal_error"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        pytest.param(b"", {"content-type": "application/json"}, 400, "invalid_request", id="empty body"),
        pytest.param(b"{}", {"content-type": "application/json"}, 400, "invalid_request", id="no input_data"),
        pytest.param(b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type", id="not JSON type"),
        pytest.param(b"{}", {}, 415, "unsupported_media_type", id="no type"),
        pytest.param(
            b"{}",
            {"content-type": "application/json", "content-encoding": "gzip"},
            415,
            "unsupported_media_type",
            id="compressed",
        ),
        pytest.param(
            b"{}", {"content-type": "application/json", "x-request-id": "x" * 101}, 431, "header_too_large", id="long id"
        ),
        pytest.param(
            b"{}", {"content-type": "application/json", "x-request-timeout-seconds": "-1"}, 400, "invalid_request", id="timeout"
        ),
        pytest.param(
            b"{}", {"content-type": "application/json", "x-request-timeout-seconds": "nan"}, 400, "invalid_request", id="nan"
        ),
    ],
)
async def test_refused_requests(client, ingress, content, headers, status, code):
    """What the front refuses itself, and counts."""
    response = await client.post("/score", content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert ingress.counted == [code]


async def test_missing_input_data_says_azures_sentence(client):
    """AzureML's own message for a body without input_data."""
    response = await client.post("/score", json={})
    assert response.json()["message"] == "A value is not provided for the 'input_data' parameter."


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "says"),
    [
        ("GET", "/nowhere", 404, "not_found", "/docs lists them"),
        ("GET", "/score", 405, "method_not_allowed", "takes POST, not GET"),
        ("OPTIONS", "/score", 405, "method_not_allowed", "takes POST, not OPTIONS"),
        ("POST", "/ready", 405, "method_not_allowed", "takes GET, HEAD, not POST"),
    ],
)
async def test_unknown_route_and_method(client, method, path, status, code, says):
    """JSON also where the router answers, with the method to use."""
    response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert says in response.json()["message"]


async def test_a_body_without_a_type_is_reported(client):
    """By what it lacks, not by a type named 'none'."""
    response = await client.post("/score", content=b"{}")
    assert response.json()["message"].endswith("such as image/jpeg, got none.")


async def test_body_over_the_limit_by_header(ingress):
    """A Content-Length over the limit is refused before a byte is read."""
    async with client_for(ingress, Settings(ingress={"max_body_mb": 0.001})) as client:
        response = await client.post("/score", content=b"x" * 2000, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "0.001 MB (ingress.max_body_mb)" in response.json()["message"]


async def test_a_length_of_thousands_of_digits(client):
    """Python refuses to read such a number; the bytes are counted as they come."""
    headers = {"content-type": "application/json", "content-length": "0" * 5000 + "2"}
    assert (await client.post("/score", content=b"{}", headers=headers)).status_code == 400


async def test_chunked_body_over_the_limit_is_cut(ingress):
    """A chunked body is refused as soon as it passes the limit, not when it ends."""
    sent = []

    async def endless():
        for part in range(10_000):
            sent.append(part)
            yield b"x" * 100

    async with client_for(ingress, Settings(ingress={"max_body_mb": 0.001})) as client:
        response = await client.post("/score", content=endless(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert len(sent) < 100


@pytest.mark.parametrize(
    ("headers", "parts", "closes"),
    [
        pytest.param({"content-length": "10000000000"}, 1, True, id="declared far over the limit"),
        pytest.param({"content-length": "1500"}, 1, False, id="declared a little over the limit"),
        pytest.param({"transfer-encoding": "chunked"}, 50, True, id="chunked, over the limit"),
        pytest.param({"transfer-encoding": "chunked"}, 1, False, id="chunked and read to its end"),
    ],
)
async def test_refused_uploads_end(ingress, headers, parts, closes):
    """A long body that was refused does not keep its connection; one that ended, or soon will, does."""

    async def body():
        for _ in range(parts):
            yield b"x" * 100

    async with client_for(ingress, Settings(ingress={"max_body_mb": 0.001})) as client:
        response = await client.post("/score", content=body(), headers=headers | {"content-type": "application/json"})
    assert response.status_code >= 400
    assert (response.headers.get("connection") == "close") == closes


async def test_dripping_body_is_cut_at_the_deadline(client):
    """A body that comes byte by byte holds its place until the request's own deadline, then 408."""

    async def drip():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    began = time.monotonic()
    headers = {"content-type": "application/json", "x-request-timeout-seconds": "0.3"}
    response = await client.post("/score", content=drip(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (408, "deadline_exceeded")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=b", "application/json"])
async def test_full_service_refuses_before_reading(client, ingress, kind):
    """With no room for ordinary images a body that holds some is not even looked at."""
    ingress.room_error = Overloaded("full")

    async def never():
        raise AssertionError
        yield

    response = await client.post("/score", content=never(), headers={"content-type": kind, "content-length": "1000000"})
    assert (response.status_code, ingress.counted) == (503, ["overloaded"])


async def test_urls_and_pictures_have_room_of_their_own(client, ingress):
    """JSON is read if its images may all be URLs: if it is short, or its length is not said. Admission then refuses or takes them. So it
    does with a photo to draw on."""
    ingress.room_error = Overloaded("full")
    assert (await client.post("/score", json=GOOD)).status_code == 200
    ingress.answers = [DrawnImage(b"picture", "image/png", {})]
    assert (await client.post("/score?draw=1", content=b"x", headers={"content-type": "image/jpeg"})).status_code == 200
    ingress.answers = None

    async def chunks():
        yield json.dumps(GOOD).encode()

    assert (await client.post("/score", content=chunks(), headers={"content-type": "application/json"})).status_code == 200


async def test_bodies_share_a_budget(ingress):
    """Uploads that stall before their end count, by what came of them; at their end the room is there again."""
    stall, small = asyncio.Event(), {"content-type": "application/json", "content-length": "100"}

    async def stalled(size):
        yield b" " * size
        await stall.wait()

    async with client_for(ingress, Settings(ingress={"max_body_mb": 0.0008, "max_bodies_mb": 0.0016})) as client:
        declared = {"content-type": "application/json", "content-length": "780"}
        uploads = [
            asyncio.create_task(client.post("/score", content=stalled(780), headers=declared)),
            asyncio.create_task(client.post("/score", content=stalled(770), headers={"content-type": "application/json"})),
        ]
        await asyncio.sleep(0.05)
        refused = await client.post("/score", content=b"{}" * 50, headers=small)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        stall.set()
        assert {upload.status_code for upload in await asyncio.gather(*uploads)} == {400}
        assert (await client.post("/score", content=b"{}" * 50, headers=small)).status_code == 400


async def test_uploads_of_one_key_leave_room_for_another(ingress, monkeypatch):
    """With several keys each has at most its share of the room."""
    monkeypatch.setenv("PRIMARY", "loud")
    monkeypatch.setenv("SECONDARY", "quiet")
    stall = asyncio.Event()

    async def stalled():
        yield b" " * 900
        await stall.wait()

    limits = {"max_body_mb": 0.001, "max_bodies_mb": 0.004, "auth": {"keys_env": ["PRIMARY", "SECONDARY"]}}
    async with client_for(ingress, Settings(ingress=limits)) as client:

        def of(key):
            return {"content-type": "application/json", "authorization": f"Bearer {key}"}

        uploads = [asyncio.create_task(client.post("/score", content=stalled(), headers=of("loud"))) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert (await client.post("/score", json=GOOD, headers=of("quiet"))).status_code == 200
        stall.set()
        assert sorted(upload.status_code for upload in await asyncio.gather(*uploads)) == [400, 400, 503, 503]
        assert (await client.post("/score", json=GOOD, headers=of("loud"))).status_code == 200


async def test_bodies_that_were_only_announced_keep_nobody_out(ingress):
    """A few idle connections cost their client nothing."""
    stall = asyncio.Event()

    async def silent():
        await stall.wait()
        yield b"{}"

    async with client_for(ingress, Settings(ingress={"max_body_mb": 1, "max_bodies_mb": 2})) as client:
        headers = {"content-type": "application/json", "content-length": "1000000"}
        uploads = [asyncio.create_task(client.post("/score", content=silent(), headers=headers)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert (await client.post("/score", json=GOOD)).status_code == 200
        stall.set()
        await asyncio.gather(*uploads)


async def test_there_is_an_end_to_the_number_of_bodies(ingress, monkeypatch):
    """However little comes of them: they would hold all requests that Ray lets in, and the probes would wait."""
    monkeypatch.setattr(http, "MAX_BODIES_ARRIVING", 3 - 512)
    stall = asyncio.Event()

    async def silent():
        await stall.wait()
        yield b"{}"

    async with client_for(ingress) as client:
        headers = {"content-type": "application/json"}
        uploads = [asyncio.create_task(client.post("/score", content=silent(), headers=headers)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (await client.post("/score", json=GOOD)).status_code == 503
        assert ingress.counted == ["overloaded"]
        stall.set()
        await asyncio.gather(*uploads)
        assert (await client.post("/score", json=GOOD)).status_code == 200


async def test_a_body_that_falls_silent_is_cut(client, monkeypatch):
    """Long before its deadline."""
    monkeypatch.setattr(body, "MAX_SILENCE_S", 0.1)

    async def silent():
        for _ in range(4):
            yield b" "
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)

    response = await client.post("/score", content=silent(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (408, "deadline_exceeded")
    assert "No byte of the request's body" in response.json()["message"]


@pytest.mark.parametrize("path", ["/ready", "/info"])
async def test_routes_that_wait_take_no_body(client, path):
    """Ray would keep what comes meanwhile in memory; the connection of an endless one is closed."""

    async def endless():
        while True:
            yield b" " * 1000

    response = await client.request("GET", path, content=endless())
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.headers["connection"] == "close"
    assert (await client.request("GET", path, content=b"x")).status_code == 400
    assert (await client.request("GET", path, headers={"content-length": "0"})).status_code == 200


def test_a_budget_below_one_body_is_refused():
    """The largest request of image files, which counts twice, could never be served."""
    with pytest.raises(ValidationError, match=r"ingress.max_bodies_mb \(63\) must be at least twice ingress.max_body_mb \(32\)"):
        Settings(ingress={"max_bodies_mb": 63})


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=b"])
async def test_the_largest_body_of_photos_fits_the_smallest_budget(ingress, kind):
    """It is answered, not refused with 503 for ever."""
    head, end = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n', b"\r\n--b--"
    async with client_for(ingress, Settings(ingress={"max_body_mb": 0.001, "max_bodies_mb": 0.002})) as client:
        content = head + b"x" * (1000 - len(head + end)) + end
        assert (await client.post("/score", content=content, headers={"content-type": kind})).status_code == 200


async def test_a_client_that_hangs_up_is_not_a_bug(ingress, caplog):
    """One quiet line, no traceback, and its share of the budget is free again."""
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    app = http_app(ingress, Settings(ingress={"max_body_mb": 0.001, "max_bodies_mb": 0.002}))

    async def receive():
        return next(messages)

    async def send(_):
        pass

    headers = [(b"content-type", b"application/json"), (b"content-length", b"1000"), (b"x-request-id", b"abc")]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b"", "root_path": ""}
    with caplog.at_level("INFO", "ray.serve"):
        await app(scope, receive, send)
    assert [(record.levelname, "abc" in record.message) for record in caplog.records] == [("INFO", True)]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        assert (await client.post("/score", json=GOOD)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/ready", "/info", "/swagger.json", "/openapi.json", "/docs", "/playground"])
async def test_head_is_answered_as_get(client, path):
    """HTTP requires it; some load balancers ask without wanting the body."""
    response = await client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert set((await client.post(path)).headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_routing_faults(client):
    """405 names all the methods; a slash too many is no redirect, whose address the caller's Host header would choose."""
    for method, path, allowed in [
        ("GET", "/score", {"POST"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("PUT", "/ready", {"GET", "HEAD"}),
    ]:
        assert set((await client.request(method, path)).headers["allow"].split(", ")) == allowed
    slash = await client.post("/score/", json=GOOD, headers={"host": "evil.example"})
    assert (slash.status_code, slash.json()["code"]) == (404, "not_found")


async def test_a_fault_in_the_guard_is_answered(ingress, monkeypatch):
    """Whatever fails before a route is reached: the caller gets the contract's 500, not silence."""
    monkeypatch.setattr("serve_app.keys.KeyRing.check", lambda *_: 1 / 0)
    async with client_for(ingress) as client:
        answer = await client.post("/score", json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")


async def test_probes_are_open_below_a_route_prefix(ingress, monkeypatch):
    """Ray Serve leaves the prefix in the path, and names it as root_path."""
    monkeypatch.setenv("PRIMARY", "sesame")
    app = http_app(ingress, Settings(ingress={"auth": {"keys_env": ["PRIMARY"]}}))
    transport = httpx.ASGITransport(app, root_path="/people")
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        paths = ("/people/ready", "/people/", "/people", "/people/info")
        assert [(await client.get(path)).status_code for path in paths] == [200, 200, 200, 401]
        scored = await client.post("/people/score", json=GOOD, headers={"authorization": "Bearer sesame"})
        assert scored.status_code == 200


@pytest.mark.parametrize("traced", [False, True])
async def test_only_traced_requests_pay_for_the_layers_of_fastapi(client, ingress, monkeypatch, traced):
    """The answers are the same."""
    passed = []
    monkeypatch.setattr(
        FastAPI, "__call__", lambda self, *call, through=FastAPI.__call__: passed.append(1) or through(self, *call)
    )
    if traced:
        monkeypatch.setattr(http.trace, "get_current_span", lambda: SimpleNamespace(is_recording=lambda: True))
    answers = [await client.post("/score", json=GOOD)]
    ingress.error = LimitExceeded("big", code="too_many_pixels")
    answers.append(await client.post("/score", json=GOOD))
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (200, [{"boxes": []}, {"boxes": []}]),
        (413, {"message": "big", "code": "too_many_pixels"}),
    ]
    assert len(passed) == (2 if traced else 0)


async def test_probes_and_info(client, ingress):
    """Liveness is plain text, readiness follows the stages, info names the model and the limits."""
    live = await client.get("/")
    assert (live.status_code, live.text) == (200, "Healthy")
    assert (await client.get("/ready")).json() == {"status": "ready"}
    ingress.ready_error = DeadlineExceeded("no answer")
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["status"] == "not ready"
    info = (await client.get("/info")).json()
    assert info["classes"] == ["person"]
    assert info["limits"]["max_images_per_request"] == 64
    assert info["exif_orientation"] is True


async def test_openapi_describes_score(client):
    """With the body, its example and every error of the table."""
    document = (await client.get("/openapi.json")).json()
    score = document["paths"]["/score"]["post"]
    assert "input_data" in score["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(score["responses"]) >= {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503"}
    assert "$defs" not in json.dumps(document)
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert score["security"] == [{"bearer": []}, {}]
    assert (await client.get("/docs")).status_code == 200


async def test_keys_guard_everything_but_health_and_documents(ingress, monkeypatch):
    """With keys set, scoring and info want one; probes and the documents, which browsers open without, do not."""
    monkeypatch.setenv("PRIMARY", "sesame")
    async with client_for(ingress, Settings(ingress={"auth": {"keys_env": ["PRIMARY"]}})) as client:
        assert (await client.get("/info")).status_code == 401
        assert (await client.get("/nowhere")).status_code == 401
        for path in ("/docs", "/swagger.json", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        refused = await client.post("/score", json=GOOD)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert ingress.counted == ["unauthorized"] * 3
        assert (await client.post("/score", json=GOOD, headers={"authorization": "Bearer sesame"})).status_code == 200
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_a_refused_request_is_counted_for_its_caller(ingress, monkeypatch):
    """Also before its images are known: who has its share is refused before its body is read. Without a valid key there is no caller."""
    monkeypatch.setenv("PRIMARY", "sesame")
    monkeypatch.setenv("SECONDARY", "open")
    async with client_for(ingress, Settings(ingress={"auth": {"keys_env": ["PRIMARY", "SECONDARY"]}})) as client:
        assert (await client.post("/score", json=GOOD, headers={"authorization": "Bearer wrong"})).status_code == 401
        assert (await client.post("/score", json={}, headers={"authorization": "Bearer sesame"})).status_code == 400
        ingress.room_error = Overloaded("full", retry_after_s=2)
        photo = {"content-type": "image/jpeg", "authorization": "Bearer open"}
        assert (await client.post("/score", content=b"x", headers=photo)).status_code == 503
    assert ingress.counted == ["unauthorized", "invalid_request", "overloaded"]
    nobody, first, second = ingress.callers
    assert nobody is None
    assert len({first, second, "", None}) == 4


async def test_an_answer_has_a_limit(ingress):
    """413 that names what makes it smaller, and counted; at the limit it is sent."""
    ingress.answers = [EncodedImage(b"x" * 600), EncodedImage(b"x" * 600)]
    async with client_for(ingress, Settings(ingress={"max_answer_mb": 0.001})) as client:
        response = await client.post("/score", json=GOOD)
        assert (response.status_code, response.json()["code"]) == (413, "answer_too_large")
        assert "decimals" in response.json()["message"]
        assert ingress.counted == ["answer_too_large"]
        ingress.answers = [EncodedImage(b"x" * 500), EncodedImage(b"x" * 500)]
        assert (await client.post("/score", json=GOOD)).status_code == 200
        ingress.answers = [DrawnImage(b"x" * 1001, "image/png")]
        response = await client.post("/score?draw=1", json={"input_data": {"columns": ["image"], "data": ["aGk="]}})
        assert (response.status_code, response.json()["code"]) == (413, "answer_too_large")
        assert "image/jpeg" in response.json()["message"]


@pytest.mark.parametrize(("size", "on_the_loop"), [(400, True), (2_000_000, False)], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["application/json", "image/jpeg"])
async def test_large_bodies_are_parsed_off_the_loop(ingress, monkeypatch, kind, size, on_the_loop):
    """The other requests of the replica go on meanwhile."""
    seen = []
    for parse in (parse_score_request, parse_photos):

        def spy(*args, parse=parse):
            seen.append(threading.current_thread() is threading.main_thread())
            return parse(*args)

        monkeypatch.setattr(http, parse.__name__, spy)
    image = "QUJD" * (size // 4)
    body = json.dumps({"input_data": {"columns": ["image"], "data": [image]}}) if kind == "application/json" else image
    async with client_for(ingress) as client:
        response = await client.post("/score", content=body, headers={"content-type": kind})
    assert response.status_code == 200
    assert seen == [on_the_loop]
    assert ingress.seen[0][0] == [image if kind == "application/json" else image.encode()]
