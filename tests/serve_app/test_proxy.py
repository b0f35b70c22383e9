"""The layer in Ray Serve's proxy: plain-text refusals become JSON, everything else passes untouched."""

import asyncio
import logging

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from serve_app import proxy
from serve_app.proxy import JsonErrors


async def ask(app, headers=None):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(JsonErrors(app)), base_url="http://proxy") as client:
        return await client.get("/", headers=headers)


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


@pytest.mark.parametrize(
    "name",
    [
        "x-request-id",
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "serve_multiplexed_model_id",
        "traceparent",
        "tracestate",
    ],
)
async def test_headers_that_ray_cannot_read(name):
    """A 400 that names the header, before Ray fails on it; also where a good one of the name stands first."""

    async def never(*_):
        raise AssertionError

    response = await ask(never, [(name, b"1"), (name, b"\xff\xfe")])
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert name in response.json()["message"]


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
    """After MAX_WRITE_S; until then their answers count, and beyond the budget the next one is refused."""
    monkeypatch.setattr(proxy, "logger", logging.getLogger("proxy of this test"))  # Ray keeps records of its own from pytest
    monkeypatch.setattr(proxy, "MAX_WRITE_S", 0.2)
    monkeypatch.setattr(proxy, "MAX_UNSENT_BYTES", 2_500_000)
    layer = JsonErrors(answering(1_000_000))
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
    await asyncio.wait_for(asyncio.gather(*stalled), 5)
    assert caplog.text.count("read nothing of its response") == 2
    answers[2].clear()
    await client(True, 2)
    assert answers[2][0]["status"] == 200
