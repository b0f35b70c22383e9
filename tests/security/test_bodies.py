"""Requests made to keep an Ingress busy: its event loop, on which all its clients wait, goes on."""

import codecs
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.fake_ingress import GOOD, FakeIngress, client_for

FORM = "multipart/form-data; boundary=b"
JSON = "application/json"
FILE = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n'
FIELD = b'--b\r\nContent-Disposition: form-data; name="a-"\r\n\r\n'
END = b"\r\n--b--\r\n"
SIZE = 31_000_000
MOST_S = 0.5
"""Most CPU time on the thread of the event loop; of that, copying a body of SIZE takes up to 0.1 s on a busy machine."""

BODIES = {
    "form in punycode": (FIELD + b"a" * 300_000 + b"\r\n" + FILE + b"x" + END, f"{FORM}; charset=punycode"),
    "file of lines like the boundary": (FILE + b"\r\n--bx" * (SIZE // 6) + END, FORM),
    "file of beginnings of the boundary": (FILE + b"\r\n-" * (SIZE // 3) + END, FORM),
    "one large file": (FILE + bytes(SIZE) + END, FORM),
    "two million boundaries": (b"--b\r\n" * 2_000_000, FORM),
    "parameters without end": (FILE + b"x" + END, f'{FORM}; a="{";" * 30_000}'),
    "photo body": (bytes(SIZE), "image/jpeg"),
    "JSON of one string": (b'{"input_data":{"columns":["image"],"data":["' + b"A" * SIZE + b'"]}}', JSON),
    "JSON of escaped quotes": (b'{"input_data":{"columns":["image"],"data":["' + b'\\"' * (SIZE // 2) + b'"]}}', JSON),
}
"""Body and content type by name."""


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(FakeIngress()) as client:
        yield client


@pytest.mark.parametrize("name", BODIES)
async def test_the_loop_goes_on(client: httpx.AsyncClient, name: str) -> None:
    """Large bodies are parsed on a thread, in steps between which the loop runs; small ones are bounded."""
    content, kind = BODIES[name]
    began = time.thread_time()
    response = await client.post("/score", content=content, headers={"content-type": kind})
    assert time.thread_time() - began < MOST_S
    assert response.status_code in (200, 400)


@pytest.fixture
def spied_codec() -> Iterator[list[bytes]]:
    """What the codec `spied` was asked to decode."""
    seen: list[bytes] = []

    def decode(data: Any, _errors: str = "strict", /) -> tuple[str, int]:
        seen.append(bytes(data))
        return "spied", len(data)

    def search(name: str) -> codecs.CodecInfo | None:
        return codecs.CodecInfo(codecs.utf_8_encode, decode, name=name) if name == "spied" else None

    codecs.register(search)
    yield seen
    codecs.unregister(search)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (FIELD + b"x\r\n" + FILE + b"x" + END, f"{FORM}; charset=spied"),
        (FILE.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain; charset=spied\r\n\r\n") + b"x" + END, FORM),
        (b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\nspied\r\n' + FILE + b"x" + END, FORM),
        (b"--b\r\nContent-Disposition: form-data; name*=spied''a; filename*=spied''b\r\n\r\nx" + END, FORM),
        (b"photo", "image/jpeg; charset=spied"),
        (b'{"input_data":{"columns":["image"],"data":["aGk="]}}', f"{JSON}; charset=spied"),
    ],
)
async def test_clients_choose_no_codec(client: httpx.AsyncClient, spied_codec: list[bytes], content: bytes, kind: str) -> None:
    """Some of Python's take minutes for a megabyte."""
    assert b"a".decode("spied") == "spied"
    assert spied_codec.pop() == b"a"
    for encoding in ("identity", "spied"):
        headers = {
            "content-type": kind,
            "content-encoding": encoding,
            "accept-charset": "spied",
            "accept": f"{JSON};charset=spied",
        }
        await client.post("/score", content=content, headers=headers)
    assert spied_codec == []


async def test_a_charset_of_json_is_ignored(client: httpx.AsyncClient) -> None:
    """As RFC 8259 says: JSON is UTF-8. Another encoding is refused by name."""
    headers = {"content-type": f"{JSON}; charset=utf-16"}
    assert (await client.post("/score", json=GOOD, headers=headers)).status_code == 200
    response = await client.post("/score", content='{"input_data": {}}'.encode("utf-16"), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert "is not UTF-8" in response.json()["message"]
    assert "such as image/jpeg" in response.json()["message"]  # what the body of a photo needs
