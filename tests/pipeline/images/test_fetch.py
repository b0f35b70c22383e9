"""Fetching, against real servers on loopback that answer as badly as they can.

Names resolve through a fake resolver to addresses of the public internet, and a fake connector leads those to the test's
servers, so the policy is never loosened for the tests.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import sys
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import httpcore
import httpx
import pytest

from pipeline.errors import ConfigurationError, DeadlineExceeded, FetchError, LimitExceeded
from pipeline.images.fetch import Fetcher, FetchPolicy, LongBody, check_url
from pipeline.images.network_guard import MAX_ADDRESSES_TRIED
from tests.support.certificates import make_certificate
from tests.support.hostile_urls import FORBIDDEN_NAMES, HOSTILE_URLS

PUBLIC_ADDRESS = "93.184.216.34"
DEAD_ADDRESS, SILENT_ADDRESS = "93.184.216.35", "93.184.216.36"
MAX_BYTES = 100_000
POLICY = FetchPolicy(connect_timeout_s=10, read_timeout_s=10, total_timeout_s=20, max_bytes=MAX_BYTES)
IMPATIENT = FetchPolicy(connect_timeout_s=0.5, read_timeout_s=0.4, total_timeout_s=0.8, max_bytes=MAX_BYTES)

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Connector(httpcore.AsyncNetworkBackend):
    """Leads PUBLIC_ADDRESS to a server on loopback, and records where connections were made to. DEAD_ADDRESS refuses, SILENT_ADDRESS does
    not answer."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.connections: list[tuple[str, int]] = []
        self.dead_answers = 10**9
        self._real = httpcore.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connections.append((host, port))
        if host == DEAD_ADDRESS and len(self.connections) <= self.dead_answers:
            raise httpcore.ConnectError
        if host == SILENT_ADDRESS:
            await asyncio.sleep(timeout)
            raise httpcore.ConnectTimeout
        return await self._real.connect_tcp("127.0.0.1", self.server_port, timeout, local_address, socket_options)


class LoopbackConnector(httpcore.AsyncNetworkBackend):
    """Really connects to loopback, where the forbidden listener is, and nowhere else: no test leaves this machine."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, int]] = []
        self._real = httpcore.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connections.append((host, port))
        if not ipaddress.ip_address(host).is_loopback:
            raise httpcore.ConnectError
        return await self._real.connect_tcp(host, port, timeout, local_address, socket_options)


class FakeResolver:
    """Names to address lists, or an error in one; a list of lists is given out one look-up after the other."""

    def __init__(self, table: dict[str, list]) -> None:
        self.table = table
        self.lookups: list[str] = []

    async def __call__(self, host: str, _port: int) -> list[str]:
        self.lookups.append(host)
        found = self.table.get(host, [])
        if found and isinstance(found[0], list):
            return found.pop(0) if len(found) > 1 else found[0]
        if found and isinstance(found[0], OSError):
            raise found[0]
        return found


class World:
    """A web server on loopback, and a fetcher that knows it as `good.test`."""

    def __init__(self, port: int) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.connector = Connector(port)
        self.resolver = FakeResolver({"good.test": [PUBLIC_ADDRESS]})
        self.fetchers: list[Fetcher] = []

    def fetcher(self, policy: FetchPolicy = POLICY) -> Fetcher:
        self.fetchers.append(Fetcher(policy, self.resolver, self.connector))
        return self.fetchers[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                self.requests.append(path)
                self.heads.append(head)
                await self.answers.get(path, NOT_FOUND)(reader, writer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(handler: Answer, host: str = "127.0.0.1", **kwargs) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, host, 0, **kwargs)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World(0)
    async with listening(world.serve) as port:
        world.connector.server_port = port
        yield world
        for fetcher in world.fetchers:
            await fetcher.aclose()


def answer(body: bytes = b"", status: str = "200 OK", headers: str = "", length: int | None = None) -> Answer:
    size = len(body) if length is None else length

    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body)

    return write


def raw(*parts: bytes, pause_s: float = 0.0, repeat: int = 1) -> Answer:
    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(parts[0])
        for _n in range(repeat):
            for part in parts[1:]:
                await asyncio.sleep(pause_s)
                writer.write(part)
                await writer.drain()
        writer.close()

    return write


async def test_fetches_over_one_kept_connection(world: World) -> None:
    """The body comes whole; the connection is used again; the request is modest."""
    world.answers["/photo.jpg?size=1"] = answer(b"jpeg bytes")
    fetcher = world.fetcher()
    for _ in range(3):
        assert await fetcher.fetch("HTTP://Good.Test/photo.jpg?size=1#part") == b"jpeg bytes"
    assert world.connector.connections == [(PUBLIC_ADDRESS, 80)]
    assert "Host: good.test\r\n" in world.heads[0]
    assert "Accept-Encoding: identity\r\n" in world.heads[0]
    assert "Cookie" not in world.heads[0]


async def test_a_fetch_imports_nothing(world: World, monkeypatch) -> None:
    """A module that is not there is looked for on the whole path at every import; httpcore imports one where it is used."""
    world.answers["/a"] = answer(b"jpeg bytes")
    fetcher = world.fetcher()
    await fetcher.fetch("http://good.test/a")
    wanted: list[str] = []

    class Recorder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            wanted.append(name)

    monkeypatch.setattr(sys, "meta_path", [Recorder, *sys.meta_path])
    await fetcher.fetch("http://good.test/a")
    assert wanted == []


async def test_many_at_once(world: World) -> None:
    """Concurrent fetches do not mix."""
    for n in range(30):
        world.answers[f"/{n}"] = answer(str(n).encode())
    fetcher = world.fetcher()
    bodies = await asyncio.gather(*(fetcher.fetch(f"http://good.test/{n}") for n in range(30)))
    assert bodies == [str(n).encode() for n in range(30)]


@pytest.mark.parametrize("port", [80, 8080])
async def test_proxies_of_the_environment_are_ignored(world: World, monkeypatch, port: int) -> None:
    """No proxy, netrc or other setting of the environment is used."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    world.answers["/x"] = answer(b"direct")
    assert await world.fetcher().fetch(f"http://good.test:{port}/x") == b"direct"
    assert world.connector.connections == [(PUBLIC_ADDRESS, port)]


@pytest.mark.parametrize("status", ["400 No", "401 No", "404 No", "418 No", "500 No", "304 No", "300 No", "204 None"])
async def test_other_status(world: World, status: str) -> None:
    """Anything but a 2xx with a body fails, at once."""
    world.answers["/x"] = answer(b"", status)
    with pytest.raises(FetchError) as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == "fetch_failed"
    assert world.requests == ["/x"]


@pytest.mark.parametrize("status", ["429 Too Many Requests", "408 Request Timeout"])
async def test_a_host_that_asks_for_patience(world: World, status: str) -> None:
    """The caller may try again; at once, it would only be refused again."""
    world.answers["/x"] = answer(b"", status)
    with pytest.raises(FetchError) as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == "fetch_unavailable"
    assert world.requests == ["/x"]


REDIRECT = "302 Found"
NOT_FOUND = answer(status="404 Not Found")


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize("location", ["/end", "end", "//good.test/end", "http://good.test:8080/end"])
async def test_redirects(world: World, status: str, location: str) -> None:
    """Relative and absolute redirects lead on."""
    world.answers["/start"] = answer(b"moved", status, f"Location: {location}\r\n")
    world.answers["/end"] = answer(b"here")
    assert await world.fetcher().fetch("http://good.test/start") == b"here"


async def test_three_redirects_and_no_more(world: World) -> None:
    """Three are followed, the fourth fails; a loop ends the same way."""
    for n in range(4):
        world.answers[f"/{n}"] = answer(b"", REDIRECT, f"Location: /{n + 1}\r\n")
    world.answers["/4"] = answer(b"far")
    world.answers["/loop"] = answer(b"", REDIRECT, "Location: /loop\r\n")
    assert await world.fetcher().fetch("http://good.test/1") == b"far"
    for path in ("/0", "/loop"):
        with pytest.raises(FetchError, match="redirects more than 3 times"):
            await world.fetcher().fetch(f"http://good.test{path}")
    assert world.requests.count("/loop") == 4


TOO_SLOW = {
    "silent after the request": raw(b"", b"", pause_s=5),
    "silent after the head": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"x", pause_s=5),
    "drips its body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b"x", pause_s=0.05, repeat=100),
    "drips its head": raw(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause_s=0.05, repeat=100),
    "says 100 for ever": raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.05, repeat=100),
}


@pytest.mark.parametrize("kind", TOO_SLOW)
async def test_slow_servers_are_cut(world: World, kind: str) -> None:
    """A silent server is cut off by the read timeout, a slow one by the total timeout."""
    world.answers["/x"] = TOO_SLOW[kind]
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        await world.fetcher(IMPATIENT).fetch("http://good.test/x")
    assert caught.value.code == "fetch_timeout"
    assert time.monotonic() - started < 3


async def test_slow_name_server_is_cut() -> None:
    """The connect timeout covers the look-up."""

    async def never(_host: str, _port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    fetcher = Fetcher(IMPATIENT, never, LoopbackConnector())
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch("http://good.test/x")
    assert caught.value.code == "fetch_timeout"
    await fetcher.aclose()


@pytest.mark.parametrize("time_left_s", [-5.0, 0.0, 0.2])
async def test_deadline_of_the_request(world: World, time_left_s: float) -> None:
    """A deadline before the total timeout is the request's own 408, and comes in time."""
    world.answers["/x"] = TOO_SLOW["drips its body"]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await world.fetcher().fetch("http://good.test/x", deadline=time.time() + time_left_s)
    assert time.monotonic() - started < 3


async def test_retries_cure_what_they_can(world: World) -> None:
    """502, 503, 504, a refused connection and a broken-off one are tried once more; the rest is not."""
    good = answer(b"at last")
    for name, first in {
        "502": answer(status="502 B"),
        "503": answer(status="503 U"),
        "504": answer(status="504 T"),
        "cut": raw(b""),
    }.items():
        tries = [first, good]

        async def flaky(reader, writer, tries=tries) -> None:
            await tries.pop(0)(reader, writer)

        world.answers[f"/{name}"] = flaky
        assert await world.fetcher().fetch(f"http://good.test/{name}") == b"at last"
    world.resolver.table["flaky.test"] = [DEAD_ADDRESS]
    world.connector.connections.clear()
    world.connector.dead_answers = 1
    world.answers["/x"] = good
    assert await world.fetcher().fetch("http://flaky.test/x") == b"at last"


async def test_retries_end(world: World) -> None:
    """A server that stays down gives fetch_unavailable after the set number of tries."""
    world.answers["/x"] = answer(status="503 U")
    with pytest.raises(FetchError, match="status 503") as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == "fetch_unavailable"
    assert world.requests == ["/x"] * 2


@pytest.mark.parametrize("first", [DEAD_ADDRESS, SILENT_ADDRESS], ids=["dead", "silent"])
async def test_second_address_is_tried(world: World, first: str) -> None:
    """While there is time left to connect."""
    world.resolver.table["two.test"] = [first, PUBLIC_ADDRESS]
    world.answers["/x"] = answer(b"ok")
    policy = replace(POLICY, connect_timeout_s=1, retries=0)
    assert await world.fetcher(policy).fetch("http://two.test/x") == b"ok"
    assert [address for address, _ in world.connector.connections] == [first, PUBLIC_ADDRESS]


async def test_a_connection_that_its_host_closed_is_not_used_again(world: World) -> None:
    async def closes(reader, writer) -> None:
        await answer(b"ok")(reader, writer)
        writer.close()

    world.answers["/x"] = closes
    fetcher = world.fetcher(replace(POLICY, retries=0))
    for _ in range(2):
        assert await fetcher.fetch("http://good.test/x") == b"ok"
        await asyncio.sleep(0.1)
    assert len(world.connector.connections) == 2


@pytest.mark.parametrize(
    ("errno", "code", "times"),
    [(socket.EAI_AGAIN, "fetch_unavailable", 2), (socket.EAI_NONAME, "url_refused", 1)],
    ids=["no answer", "no such name"],
)
async def test_faults_of_the_name_server(world: World, errno: int, code: str, times: int) -> None:
    """Only one that does not answer is asked again."""
    world.resolver.table["good.test"] = [socket.gaierror(errno, "fault")]
    with pytest.raises(FetchError) as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == code
    assert world.resolver.lookups == ["good.test"] * times


async def test_a_host_with_many_addresses(world: World) -> None:
    """A name server cannot make the service try as many as it names."""
    world.resolver.table["many.test"] = [DEAD_ADDRESS] * 100
    with pytest.raises(FetchError):
        await world.fetcher(replace(POLICY, retries=0)).fetch("http://many.test/x")
    assert len(world.connector.connections) == MAX_ADDRESSES_TRIED


CHUNK = b"%x\r\n" % 65536 + b"\0" * 65536 + b"\r\n"
TOO_LARGE = {
    "10 GB Content-Length": answer(b"x" * 10, length=10 * 2**30),
    "a byte over by Content-Length": answer(b"x" * (MAX_BYTES + 1)),
    "endless chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK, repeat=10_000),
    "endless until close": raw(b"HTTP/1.1 200 OK\r\n\r\n", b"\0" * 65536, repeat=10_000),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_too_large(world: World, kind: str) -> None:
    """The cap holds by Content-Length before the body, and by count without one; memory stays near the cap."""
    world.answers["/x"] = TOO_LARGE[kind]
    fetcher = world.fetcher()
    tracemalloc.start()
    with pytest.raises(LimitExceeded, match=r"larger than 0\.1 MB \(image_loader\.max_image_mb\)") as caught:
        await fetcher.fetch("http://good.test/x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "image_too_large"
    assert peak < 2_000_000


@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_a_longer_body_than_asked_for(world: World, kind: str) -> None:
    """It is no fault of the URL unless it is beyond the cap, too."""
    world.answers["/x"] = TOO_LARGE[kind]
    world.answers["/y"] = answer(b"x" * (MAX_BYTES - 1))
    fetcher = world.fetcher()
    with pytest.raises(LimitExceeded) as beyond:
        await fetcher.fetch("http://good.test/x", at_most=MAX_BYTES)
    assert beyond.value.code == "image_too_large"
    with pytest.raises(LongBody):
        await fetcher.fetch("http://good.test/y", at_most=MAX_BYTES - 2)
    assert len(await fetcher.fetch("http://good.test/y", at_most=MAX_BYTES - 1)) == MAX_BYTES - 1


async def test_cap_is_exact(world: World) -> None:
    """max_bytes bytes pass."""
    world.answers["/x"] = answer(b"x" * MAX_BYTES)
    assert len(await world.fetcher().fetch("http://good.test/x")) == MAX_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
async def test_gzip_bomb_is_not_opened(world: World, encoding: str) -> None:
    """A compressed answer was not asked for and is refused unread."""
    bomb = zlib.compress(b"\0" * 50_000_000)
    world.answers["/x"] = answer(bomb, headers=f"Content-Encoding: {encoding}\r\n")
    with pytest.raises(FetchError, match="compressed"):
        await world.fetcher().fetch("http://good.test/x")


async def test_a_second_header_says_that_it_is_compressed(world: World) -> None:
    """All count."""
    world.answers["/x"] = answer(b"x", headers="Content-Encoding: identity\r\nContent-Encoding: GZIP\r\n")
    with pytest.raises(FetchError, match="compressed"):
        await world.fetcher().fetch("http://good.test/x")


@pytest.mark.parametrize("encoding", ["", "none", "UTF-8", "binary", "aws-chunked"])
async def test_words_that_are_no_compression(world: World, encoding: str) -> None:
    """Hosts send them; what follows is the image."""
    world.answers["/x"] = answer(b"image", headers=f"Content-Encoding: {encoding}\r\n")
    assert await world.fetcher().fetch("http://good.test/x") == b"image"


BROKEN = {
    "truncated": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
    "truncated chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "closed at once": raw(b""),
    "negative length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "empty": answer(b""),
    "redirect without a place": answer(b"", REDIRECT),
}


ANSWERED = {"empty", "redirect without a place"}


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_answers(world: World, kind: str) -> None:
    """Whatever is no whole HTTP answer is an error, and one that may be gone the next time where a connection broke."""
    world.answers["/x"] = BROKEN[kind]
    with pytest.raises(FetchError) as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == ("fetch_failed" if kind in ANSWERED else "fetch_unavailable")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WASTEFUL = {
    "endless head": raw(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 60_000 + b"\r\n", repeat=50),
    "endless interim responses": raw(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000, repeat=1000),
    "chunks of one byte": raw(CHUNKED, b"1\r\nx\r\n" * 1000, repeat=90),
    "chunks of 30 bytes": raw(CHUNKED, (b"1e\r\n" + b"x" * 30 + b"\r\n") * 100, repeat=30),
    "large chunks and small ones": raw(CHUNKED, b"800\r\n" + b"x" * 2048 + b"\r\n" + b"1\r\nx\r\n" * 1000, repeat=30),
    "endless trailers": raw(CHUNKED, b"1\r\nx\r\n0\r\n", b"X: y\r\n" * 10_000, repeat=1),
}


@pytest.mark.parametrize("kind", WASTEFUL)
async def test_a_host_that_makes_us_parse_much(world: World, kind: str) -> None:
    """A response with little body for its bytes is given up for good: parsing it would keep all other images waiting."""
    world.answers["/x"] = WASTEFUL[kind]
    with pytest.raises(FetchError, match="very small pieces") as caught:
        await world.fetcher().fetch("http://good.test/x")
    assert caught.value.code == "fetch_failed"
    assert len(world.requests) == 1


async def test_tls_records_of_one_byte(world: World, tmp_path) -> None:
    """They count as small pieces, too."""
    cert, key = make_certificate(tmp_path, "good.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _n in range(5000):
            writer.write(b"x")
        writer.close()

    world.answers["/x"] = write
    async with listening(world.serve, ssl=context) as world.connector.server_port:
        with pytest.raises(FetchError, match="very small pieces"):
            await world.fetcher(FetchPolicy(ca_file=cert)).fetch("https://good.test/x")


FRUGAL = {
    "a head of 30 kB": answer(b"x" * 90_000, headers=f"X: {'y' * 30_000}\r\n"),
    "chunks of 256 bytes": raw(CHUNKED, (b"100\r\n" + b"x" * 256 + b"\r\n") * 350, b"0\r\n\r\n"),
    "some interim responses": raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 90_000
    ),
}


@pytest.mark.parametrize("kind", FRUGAL)
async def test_small_pieces_that_occur(world: World, kind: str) -> None:
    """Heads with many cookies and servers that send the lines of a file are read, again and again on one connection."""
    world.answers["/x"] = FRUGAL[kind]
    fetcher = world.fetcher()
    for _ in range(3):
        assert len(await fetcher.fetch("http://good.test/x")) >= 89_600


class CancellingConnector(Connector):
    """Cancels its caller when the connection is there."""

    async def connect_tcp(self, *args, **kwargs):
        stream = await super().connect_tcp(*args, **kwargs)
        asyncio.current_task().cancel()
        return stream


@pytest.mark.parametrize("moment", ["connected", "TLS, by its caller", "TLS, by the deadline", "head", "body"])
async def test_a_cancelled_fetch_leaves_no_connection(world: World, moment: str) -> None:
    """At whatever moment: else hosts that do not answer would use up the process's file descriptors."""
    open_ends, seen = 0, asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_ends
        open_ends += 1
        if moment == "body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        seen.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the other side closes
        open_ends -= 1
        writer.close()

    async with listening(silent) as port:
        world.connector = (CancellingConnector if moment == "connected" else Connector)(port)
        fetcher = world.fetcher()
        deadline = time.time() + 0.2 if moment.endswith("deadline") else None
        task = asyncio.create_task(fetcher.fetch(f"http{'s' * moment.startswith('TLS')}://good.test/x", deadline))
        await seen.wait()
        if deadline is None:
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await task
        async with asyncio.timeout(5):
            while open_ends:
                await asyncio.sleep(0.01)
        assert fetcher._pool.connections == []


async def test_a_cancelled_fetch_leaves_the_connections_of_others(world: World) -> None:
    """Those that serve another fetch, and those that wait for the next one."""
    world.answers["/x"] = answer(b"abc")
    world.answers["/silent"] = TOO_SLOW["silent after the request"]
    fetcher, going_on = world.fetcher(), asyncio.Event()

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await going_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    world.answers["/slow"] = slow
    other, cancelled = (asyncio.create_task(fetcher.fetch(f"http://good.test/{path}")) for path in ("slow", "silent"))
    await fetcher.fetch("http://good.test/x")
    while len(world.requests) < 3:
        await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    going_on.set()
    assert await other == await fetcher.fetch("http://good.test/x") == b"abc"
    assert (len(world.connector.connections), world.requests.count("/slow")) == (3, 1)


async def test_a_fetch_cancelled_while_it_releases_its_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is released all the same, for the next fetch."""
    world.answers["/x"] = answer(b"abc")
    fetcher, release = world.fetcher(), httpcore.Response.aclose

    async def cancelled_meanwhile(response: httpcore.Response) -> None:
        task.cancel()
        await release(response)

    monkeypatch.setattr(httpcore.Response, "aclose", cancelled_meanwhile)
    task = asyncio.create_task(fetcher.fetch("http://good.test/x"))
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while not all(connection.is_idle() for connection in fetcher._pool.connections):
            await asyncio.sleep(0.01)
    assert fetcher._pool._requests == []


# ---- where a URL may lead -------------------------------------------------------------------------------------------


class Forbidden:
    """A listener that must not be reached, on IPv4 and, if available, IPv6 loopback; counts connections."""

    def __init__(self) -> None:
        self.hits = 0

    async def hit(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        writer.close()


@pytest.fixture
async def forbidden() -> AsyncIterator[tuple[Forbidden, int]]:
    listener = Forbidden()
    async with listening(listener.hit) as port, contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(OSError):
            server = await asyncio.start_server(listener.hit, "::1", port)
            stack.callback(server.close)
        yield listener, port


def hostile_fetcher(world: World, port: int, connector: httpcore.AsyncNetworkBackend) -> Fetcher:
    world.resolver.table |= FORBIDDEN_NAMES
    policy = FetchPolicy(allowed_ports=(80, 443, 8080, port), retries=0)
    world.fetchers.append(Fetcher(policy, world.resolver, connector))
    return world.fetchers[-1]


def check_refusal(error: FetchError) -> None:
    assert error.code == "url_refused"
    assert error.status == 422
    for secret in ("127.", "10.", "169.254", "::1", "secret", "loopback", "private"):
        assert secret not in error.message


def test_the_table_is_long_enough() -> None:
    """At least 80 hostile URLs, all different."""
    assert len(set(HOSTILE_URLS)) >= 80


async def test_hostile_urls_make_no_connection(world: World, forbidden) -> None:
    """Every hostile URL is refused without one connection, asked directly; the connector would reach the listener."""
    listener, port = forbidden
    connector = LoopbackConnector()
    fetcher = hostile_fetcher(world, port, connector)
    for url in HOSTILE_URLS:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(url.format(port=port))
        check_refusal(caught.value)
    assert listener.hits == 0
    assert connector.connections == []


async def test_the_listener_would_notice(forbidden) -> None:
    """The control: with loopback allowed, the same connector does reach the listener."""
    listener, port = forbidden
    policy = FetchPolicy(allowed_ports=(port,), allowed_networks=("127.0.0.0/8",))
    fetcher = Fetcher(policy, FakeResolver({}), LoopbackConnector())
    await fetcher.fetch(f"http://127.0.0.1:{port}/")
    await fetcher.aclose()
    assert listener.hits == 1


def leads_back(location: str, port: int) -> bool:
    """Tell whether a reference, odd as it is, only means the redirecting host itself on an allowed port."""
    try:
        target = httpx.URL("http://good.test/go").join(location)
    except httpx.InvalidURL:
        return False
    return target.host == "good.test" and target.port in (None, port) and target.scheme == "http" and not target.userinfo


async def test_hostile_redirects_make_no_connection(world: World, forbidden) -> None:
    """The same URLs as targets of a redirect: only the redirecting server is ever connected to."""
    listener, port = forbidden
    fetcher = hostile_fetcher(world, port, world.connector)
    for url in HOSTILE_URLS:
        target = url.format(port=port)
        if "\r" in target or "\0" in target:
            continue
        world.answers["/go"] = answer(b"", REDIRECT, f"Location: {target}\r\n")
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch("http://good.test/go")
        if not leads_back(target, port):
            check_refusal(caught.value)
    assert listener.hits == 0
    assert {address for address, _ in world.connector.connections} == {PUBLIC_ADDRESS}


async def test_rebinding_finds_nothing_to_rebind(world: World, forbidden) -> None:
    """One look-up a connection, and the connection goes to what that look-up gave; the next one is judged anew."""
    listener, port = forbidden
    fetcher = hostile_fetcher(world, port, world.connector)
    world.resolver.table["rebind.test"] = [[PUBLIC_ADDRESS], ["127.0.0.1"]]
    world.answers["/x"] = answer(b"public", headers="Connection: close\r\n")
    assert await fetcher.fetch(f"http://rebind.test:{port}/x") == b"public"
    assert world.resolver.lookups == ["rebind.test"]
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch(f"http://rebind.test:{port}/x")
    check_refusal(caught.value)
    world.resolver.table["rebind2.test"] = [[PUBLIC_ADDRESS], ["10.0.0.1"]]
    world.answers["/y"] = answer(b"", REDIRECT, f"Connection: close\r\nLocation: http://rebind2.test:{port}/x\r\n")
    with pytest.raises(FetchError):
        await fetcher.fetch(f"http://rebind2.test:{port}/y")
    assert listener.hits == 0
    assert world.connector.connections == [(PUBLIC_ADDRESS, port)] * 2


async def test_unknown_and_private_hosts_look_the_same(world: World) -> None:
    """The message does not reveal which internal names exist."""
    world.resolver.table |= FORBIDDEN_NAMES
    messages = set()
    for host in ("to-private.test", "to-nothing.test", "10.0.0.1"):
        with pytest.raises(FetchError) as caught:
            await world.fetcher().fetch(f"http://{host}/")
        messages.add((caught.value.code, caught.value.message))
    assert len(messages) == 1


@pytest.mark.parametrize(
    "exception", [{"allowed_networks": ("127.0.0.0/8",)}, {"allowed_hosts": ("127.0.0.1", "localhost")}], ids=["network", "host"]
)
async def test_operator_can_open_what_he_needs(world: World, exception: dict) -> None:
    """An allowed network or host is fetched from with the system's resolver; the rest stays shut."""
    port = world.connector.server_port
    world.answers["/x"] = answer(b"inside")
    fetcher = Fetcher(FetchPolicy(allowed_ports=(port,), **exception), connector=LoopbackConnector())
    try:
        assert await fetcher.fetch(f"http://127.0.0.1:{port}/x") == b"inside"
        assert await fetcher.fetch(f"http://localhost:{port}/x") == b"inside"
        with pytest.raises(FetchError):
            await fetcher.fetch(f"http://10.0.0.1:{port}/x")
    finally:
        await fetcher.aclose()


def test_international_names_are_encoded() -> None:
    """IDNA names become what is looked up."""
    assert check_url("http://Bücher.example/ä?q=ü@", POLICY).raw_host == b"xn--bcher-kva.example"


BAD_POLICIES = [{"total_timeout_s": 0}, {"max_bytes": 0}, {"retries": -1}, {"ca_file": "/none.pem"}, {"allowed_networks": ("x",)}]


@pytest.mark.parametrize("fields", BAD_POLICIES, ids=str)
def test_bad_policy(fields: dict) -> None:
    """A policy that cannot work stops the start."""
    with pytest.raises(ConfigurationError):
        Fetcher(FetchPolicy(**fields))


# ---- TLS ------------------------------------------------------------------------------------------------------------


async def test_tls_verifies_the_name_not_the_address(world: World, tmp_path) -> None:
    """https to the checked address still verifies the host of the URL; a certificate of another host is refused, without a retry."""
    cert, key = make_certificate(tmp_path, "good.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    world.answers["/x"] = answer(b"over TLS")
    world.resolver.table["other.test"] = [PUBLIC_ADDRESS]
    async with listening(world.serve, ssl=context) as world.connector.server_port:
        trusting = FetchPolicy(ca_file=cert)
        assert await world.fetcher(trusting).fetch("https://good.test/x") == b"over TLS"
        world.connector.connections.clear()
        for policy, host in ((trusting, "other.test"), (POLICY, "good.test")):
            with pytest.raises(FetchError, match="verified over TLS"):
                await world.fetcher(policy).fetch(f"https://{host}/x")
    assert world.connector.connections == [(PUBLIC_ADDRESS, 443)] * 2
