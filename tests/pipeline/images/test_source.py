"""URL, data URL or base64."""

import base64
import os
import time

import pytest

from pipeline.errors import FetchError, ImageError, LimitExceeded
from pipeline.images.source import parse_source, url_host

DATA = bytes(range(256)) * 3 + b"!"


@pytest.mark.parametrize("url", ["http://a.example/x.jpg", "HTTPS://A.example/x", "HtTp://a", " https://a.example/x.jpg\n"])
def test_urls_in_any_letter_case(url: str) -> None:
    """http and https, trimmed, otherwise as they came."""
    assert parse_source(url) == url.strip()


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(DATA).decode(),
        base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        "  " + base64.b64encode(DATA).decode() + "\n",
        "data:image/jpeg;base64," + base64.b64encode(DATA).decode(),
        "data:application/octet-stream;base64," + base64.b64encode(DATA).decode(),
        "data:;base64," + base64.b64encode(DATA).decode(),
        "DATA:image/svg+xml;charset=utf-8;BASE64," + base64.encodebytes(DATA).decode(),
    ],
    ids=[
        "plain",
        "line breaks",
        "CRLF",
        "padded with blanks",
        "data URL",
        "of an unknown kind",
        "of no kind",
        "data URL with parameter",
    ],
)
def test_base64(text: str) -> None:
    """Standard base64 with and without line breaks, bare or in a data URL."""
    assert parse_source(text) == DATA


@pytest.mark.parametrize("text", ["", " \n", "data:image/png;base64,"])
def test_empty(text: str) -> None:
    """Nothing is no image."""
    with pytest.raises(ImageError, match="empty") as caught:
        parse_source(text)
    assert caught.value.code == "invalid_base64"


@pytest.mark.parametrize(
    "text", ["photo.jpg", "AAA", "AAA=A", "AA==AA==", "_-_-", "äöü=", "AAAA\0AAAA", "/etc/passwd.", "A A,A A"]
)
def test_neither_url_nor_base64(text: str) -> None:
    """Anything else says what is expected."""
    with pytest.raises(ImageError, match="neither an http") as caught:
        parse_source(text)
    assert caught.value.code == "invalid_base64"
    assert caught.value.status == 422


OTHER_SCHEMES = [
    "ftp://a/x",
    "file:///etc/passwd",
    "FILE:/x",
    "gopher://a",
    "javascript:1",
    "C:\\x",
    "s3://b/k",
    "data:,x",
    "dict:x",
]
OTHER_SCHEMES += [
    "data:text/html;base64,AAAA",
    "data:image/png,AAAA",
    "jar:http://a!/",
    "unix:/x",
    "data:image/png;base64;x,AAAA",
]


@pytest.mark.parametrize("text", OTHER_SCHEMES)
def test_other_schemes_are_refused(text: str) -> None:
    """Only http, https and data:image/...;base64, are read."""
    with pytest.raises(FetchError) as caught:
        parse_source(text)
    assert caught.value.code == "url_refused"


@pytest.mark.parametrize("excess", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes], ids=["plain", "line breaks"])
def test_cap_is_exact(excess: int, encode) -> None:
    """max_bytes bytes pass, one more does not, line breaks do not count."""
    text = encode(os.urandom(900 + excess)).decode()
    if excess == 0:
        assert len(parse_source(text, max_bytes=900)) == 900
        return
    with pytest.raises(LimitExceeded, match=r"larger than 0\.0009 MB") as caught:
        parse_source(text, max_bytes=900)
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(
    "text", ["A" * 40_000_000, ":" * 10_000_000, "A" * 10_000_000 + "!", "A \n" * 8_000_000], ids=str.__len__
)
def test_long_strings_are_quick(text: str) -> None:
    """Over-long and hostile strings cost little."""
    started = time.thread_time()
    with pytest.raises((LimitExceeded, ImageError)):
        parse_source(text, max_bytes=1_000_000)
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://photos.example.com/a.jpg", "example.com:http"),
        (" HTTPS://user@A.Photos.Example.com.:8443/a.jpg?b", "example.com:8443"),
        ("http://127.0.0.1:9000/a.jpg", "127.0.0.1:9000"),
        ("http://[2001:db8::1]/a.jpg", "2001:db8::1:http"),
        ("http://localhost/a.jpg", "localhost:http"),
        ("http://a:b:c/", "http://a:b:c/"),
        ("http://[", "http://["),
    ],
)
def test_host_of_a_url(url, host):
    """Whatever the form of the URL; one that is malformed is a host of its own."""
    assert url_host(url) == host
