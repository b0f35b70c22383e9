"""The layer in Ray Serve's proxy: plain-text refusals become JSON, everything else passes untouched."""

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

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


@pytest.mark.parametrize(
    "name",
    ["x-request-id", "x-request-timeout-seconds", "x-request-disconnect-disabled", "x-session-id", "serve_multiplexed_model_id"],
)
async def test_headers_that_ray_cannot_read(name):
    """A 400 that names the header, before Ray fails on it; also where a good one of the name stands first."""

    async def never(*_):
        raise AssertionError

    response = await ask(never, [(name, b"1"), (name, b"\xff\xfe")])
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert name in response.json()["message"]
