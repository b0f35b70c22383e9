"""The layer in Ray Serve's proxy: plain-text refusals become JSON, everything else passes untouched."""

import asyncio
import json
import logging

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from serve_app.http import proxy
from serve_app.http.proxy import JsonErrors


async def ask(app, headers=None, query=""):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(JsonErrors(app)), base_url="http://proxy") as client:
        return await client.get(f"/?{query}", headers=headers)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (408, "deadline_exceeded"), (429, "overloaded"), (500, "internal_error"), (503, "overloaded")],
)
async def test_plain_errors_become_json(status, code):
    """Ray's own text, which may name internals, is not sent on."""
    response = await ask(PlainTextResponse("Deployment X at /home/me failed", status_code=status))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "/home/me" not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize("answer", [PlainTextResponse("Healthy"), JSONResponse({"code": "x"}, status_code=422)])
async def test_the_rest_passes(answer):
    """Good answers and JSON errors are the same bytes as before."""
    response = await ask(answer)
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


async def test_ids_and_waits_stay():
    """What Ray says about a request that it ended; nothing else of its headers."""
    headers = {"x-request-id": "abc", "retry-after": "7", "x-internal": "a"}
    response = await ask(PlainTextResponse("busy", status_code=503, headers=headers))
    assert (response.headers["x-request-id"], response.headers["retry-after"]) == ("abc", "7")
    assert "x-internal" not in response.headers
    assert response.headers["content-type"] == "application/json"


async def test_no_answer_is_a_500():
    """A replica that died without a word."""

    async def silent(scope, receive, send):
        pass

    response = await ask(silent)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")


@pytest.mark.parametrize("raised", [RuntimeError("at /home/me"), TimeoutError()], ids=["bug", "timeout"])
async def test_an_exception_is_a_500_in_json(raised, caplog):
    """Told in the log only."""

    async def failing(*_):
        raise raised

    with caplog.at_level(logging.ERROR, "ray.serve"):
        response = await ask(failing)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "/home/me" not in response.text
    assert [record.exc_info[1] for record in caplog.records] == [raised]


@pytest.mark.parametrize("name", ["x-request-id", "x-request-timeout-seconds", "traceparent", "tracestate"])
async def test_headers_that_ray_cannot_read(name):
    """A 400 that names the header, before Ray fails on it; also where a good one of the name stands first."""
    response = await ask(never, [(name, b"1"), (name, b"\xff\xfe")])
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert name in response.json()["message"]


async def never(*_):
    raise AssertionError


@pytest.mark.parametrize(
    "name",
    ["x-request-disconnect-disabled", "X_Request_Disconnect_Disabled", "x-session-id", "serve_multiplexed_model_id"],
)
@pytest.mark.parametrize("value", [b"?1", b"\xff\xfe"])
async def test_headers_that_ray_does_not_get(name, value):
    """By them a client would keep its work from ending with its connection, or influence which replica gets it."""
    seen = []

    async def app(scope, receive, send):
        seen.extend(header for header, _ in scope["headers"])
        await PlainTextResponse("ok")(scope, receive, send)

    assert (await ask(app, [(name, value), ("x-other", b"1"), (name, value)])).status_code == 200
    assert b"x-other" in seen
    assert name.lower().encode() not in seen


async def test_there_are_no_websockets():
    """Ray would open the connection, and answer in plain text."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/score", "headers": [], "extensions": {"websocket.http.response": {}}}
    await JsonErrors(never)(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (404, "not_found")


def long_header(size):
    return [("accept", ";," * (size // 2))]


def many_headers(size):
    return [("a", "b" * 99)] * (size // 100)


@pytest.mark.parametrize(
    ("query", "headers"),
    [("", long_header(33_000)), ("", many_headers(33_000)), ("a&" * 16_500, []), ("a" * 17_000, long_header(17_000))],
    ids=["header", "headers", "query", "both"],
)
async def test_large_headers_and_urls_are_refused(query, headers):
    """Before anybody reads the lists in them. The connection ends, with whatever body was to come."""
    response = await ask(never, headers, query)
    assert (response.status_code, response.json()["code"]) == (431, "header_too_large")
    assert "the limit is 32768" in response.json()["message"]
    assert response.headers["connection"] == "close"
    assert (
        await ask(PlainTextResponse("ok"), [(name, value[:50]) for name, value in headers][:300], query[:9000])
    ).status_code == 200


def answering(size):
    async def app(_scope, _receive, send):
        headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    return app


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


SCOPE = {"type": "http", "headers": [], "method": "POST", "path": "/score"}


async def test_answers_are_sent_in_pieces():
    """So that the server waits for the client between them; what arrives is the whole."""
    sent = []

    async def send(message):
        sent.append(message)

    await JsonErrors(answering(1_000_000))(SCOPE, receive, send)
    bodies = [message for message in sent if message["type"] == "http.response.body"]
    assert b"".join(message["body"] for message in bodies) == bytes(1_000_000)
    assert [message["more_body"] for message in bodies] == [True, True, True, False]


async def test_clients_that_do_not_read_are_cut(monkeypatch, caplog):
    """After MAX_WRITE_S; until then their answers count, and beyond the budget the next long one is refused."""
    monkeypatch.setattr(proxy, "logger", logging.getLogger("proxy of this test"))  # Ray keeps records of its own from pytest
    monkeypatch.setattr(proxy, "MAX_WRITE_S", 0.2)
    monkeypatch.setattr(proxy, "MAX_UNSENT_BYTES", 2_000_000)
    lengths = iter([1_000_000] * 3 + [proxy.PIECE_BYTES] * 3 + [1_000_000])

    async def app(*connection):
        await answering(next(lengths))(*connection)

    layer = JsonErrors(app)
    answers: list[list] = [[], [], []]

    def client(reads, number):
        async def send(message):
            answers[number].append(message)
            if message["type"] == "http.response.body" and not reads:
                await asyncio.sleep(60)

        return layer(SCOPE, receive, send)

    stalled = [asyncio.create_task(client(False, number)) for number in range(2)]
    await asyncio.sleep(0.05)
    await client(True, 2)
    assert answers[2][0]["status"] == 503
    for _ in range(3):
        answers[2].clear()
        await client(True, 2)
        assert answers[2][0]["status"] == 200
    await asyncio.wait_for(asyncio.gather(*stalled), 5)
    assert caplog.text.count("read nothing of its response") == 2
    answers[2].clear()
    await client(True, 2)
    assert answers[2][0]["status"] == 200
