"""Look-ups end in time, and one domain's silent name server delays no other names."""

import asyncio
import contextlib
import socket
import struct
import time

import pytest

from pipeline.errors import FetchError
from pipeline.images.fetch import Fetcher, FetchPolicy
from pipeline.images.resolver import MAX_LOOKUPS_PER_DOMAIN, DnsResolver

A_RECORD, NAME_ERROR = 1, 3


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an A record with 93.184.216.34, `missing.*` with NXDOMAIN, and `*.silent.example` never."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += length + 1
        (kind,) = struct.unpack("!H", data[at + 1 : at + 3])
        name = ".".join(labels)
        self.asked.append(name)
        if name.endswith("silent.example"):
            return
        fault = NAME_ERROR if name.startswith("missing") else 0
        found = kind == A_RECORD and not fault
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | fault, 1, int(found), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", A_RECORD, 1, 60, 4) + socket.inet_aton("93.184.216.34")
        self.transport.sendto(head + data[12 : at + 5] + (record if found else b""), address)


@pytest.fixture
async def server():
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(NameServer, ("127.0.0.1", 0))
    protocol.port = transport.get_extra_info("sockname")[1]
    yield protocol
    transport.close()


@pytest.fixture
async def resolver(server):
    resolver = DnsResolver([f"127.0.0.1:{server.port}"])
    yield resolver
    await resolver.aclose()


async def test_addresses_and_missing_names(resolver):
    """Found, or said to be missing, as one that no name server would know; a local name needs none."""
    assert await resolver("photos.example", 80) == ["93.184.216.34"]
    for name in ("missing.example", f"{'a' * 64}.example", "a..example"):
        with pytest.raises(socket.gaierror) as missing:
            await resolver(name, 80)
        assert missing.value.errno == socket.EAI_NONAME
    assert "127.0.0.1" in await resolver("localhost", 80)


async def test_a_silent_name_server_delays_only_its_own_names(server, resolver):
    """A hundred names that are never answered, and a name of another domain beside them."""
    silent = [asyncio.create_task(resolver(f"a{n}.silent.example", 80)) for n in range(100)]
    while len(server.asked) < MAX_LOOKUPS_PER_DOMAIN:
        await asyncio.sleep(0)
    began = time.monotonic()
    assert await resolver("photos.example", 80) == ["93.184.216.34"]
    assert time.monotonic() - began < 1.0
    assert len({name for name in server.asked if "silent" in name}) <= MAX_LOOKUPS_PER_DOMAIN
    for task in silent:
        task.cancel()
    await asyncio.gather(*silent, return_exceptions=True)
    assert not resolver._turns


async def test_a_lookup_ends_with_its_connection(resolver):
    """The time to connect includes the look-up."""
    fetcher = Fetcher(FetchPolicy(connect_timeout_s=0.2, retries=0), resolver)
    began = time.monotonic()
    with pytest.raises(FetchError) as fault:
        await fetcher.fetch("http://a.silent.example/x.jpg")
    assert fault.value.code == "fetch_timeout"
    assert time.monotonic() - began < 1.0
    with contextlib.suppress(Exception):
        await fetcher.aclose()


async def test_a_name_server_that_does_not_answer(monkeypatch, server):
    """Not worth another try at once, unlike one that says that it has no answer."""
    monkeypatch.setattr("pipeline.images.resolver.LOOKUP_TIMEOUT_S", 0.05)
    resolver = DnsResolver([f"127.0.0.1:{server.port}"])
    with pytest.raises(TimeoutError):
        await resolver("a.silent.example", 80)
    await resolver.aclose()


async def test_no_name_server_is_worth_another_try():
    """There is no server at that address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    resolver = DnsResolver([f"127.0.0.1:{port}"])
    with pytest.raises(socket.gaierror) as fault:
        await resolver("photos.example", 80)
    assert fault.value.errno == socket.EAI_AGAIN
    await resolver.aclose()
