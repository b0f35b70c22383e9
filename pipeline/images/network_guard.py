"""The network backend of the fetcher: resolves a host, checks all its addresses, and connects to one of them.

host ─▶ resolve ─▶ all addresses permitted? ─no─▶ FetchError url_refused
                            │yes
                            ▼
                   connect to the address itself (no second DNS query, so no DNS rebinding); TLS still verifies the host
                            ▼
                   GuardedStream: reads in small pieces, and gives up a host that sends much that is no body
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore

from pipeline.errors import FetchError
from pipeline.images.address_policy import AddressPolicy

MAX_ADDRESSES_TRIED = 4

MAX_HEAD_BYTES, MAX_FRAMING_BYTES = 32_768, 4096
"""Most bytes that a host may send before the body of its response, and beside it, such as the lengths of chunks. Parsing takes time for
each line and chunk, not for each byte: 64 kB of chunks with one byte each blocked the event loop for 0.2 s, again and again."""
BODY_SHARE = 32
"""Beside the body there may also be a byte for this many of it: a server that sends a file line by line has chunks of 256 bytes."""
READ_COST = 16
"""Bytes that each read counts in addition, because a TLS record of one byte costs a read."""
FIRST_READS_BYTES, LARGE_PIECE_BYTES = 4096, 1024
"""Most bytes of a read, until a piece of the body has so many bytes. What was read is parsed before other images get their turn."""

REFUSED_HOST_MESSAGE = (
    "The URL is refused: its host does not resolve to public addresses only (image_loader.fetch.allowed_hosts)."
)
"""The same message for private and for unknown hosts, so that it does not reveal the names of an internal network."""

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Takes host and port, returns the host's addresses; raises socket.gaierror, with EAI_AGAIN if a retry may work, or
TimeoutError."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that the policy permits.

    Args:
        policy: decides about each address.
        resolve: returns the addresses of a host; tests use a fake.
        connector: connects to an address; None uses httpcore's.
    """

    def __init__(self, policy: AddressPolicy, resolve: Resolver, connector: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._policy = policy
        self._resolve = resolve
        self._connector = connector or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to `host`, within `timeout` seconds.

        Raises:
            FetchError `url_refused`: not all its addresses are permitted.
            httpcore.ConnectTimeout: no connection in time.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._permitted_addresses(host, port)
                return GuardedStream(await self._connect_first(addresses, port, timeout, local_address, socket_options))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    async def sleep(self, seconds: float) -> None:
        """Part of httpcore's interface."""
        await asyncio.sleep(seconds)

    async def _permitted_addresses(self, host: str, port: int) -> list[str]:
        addresses = await self._addresses(host, port)
        if not addresses or not all(self._policy.permits(host, address) for address in addresses):
            raise FetchError(REFUSED_HOST_MESSAGE, code="url_refused")
        return addresses[:MAX_ADDRESSES_TRIED]

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            return await self._resolve(host, port)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise httpcore.ConnectError from error
            return []

    async def _connect_first(
        self,
        addresses: list[str],
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        share = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            try:
                return await self._connector.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connector.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class GuardedStream(httpcore.AsyncNetworkStream):
    """A connection to an untrusted host.

    - It gives up a host that makes us parse much for little body.
    - It is closed if its TLS handshake is cancelled; httpcore 1.0.9 would leave it open for as long as the host does.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._beside, self._most, self._reads_large = 0, MAX_HEAD_BYTES, False

    def head_ends(self) -> None:
        """Call this when the head of a response has arrived."""
        self._beside, self._most = 0, MAX_FRAMING_BYTES

    def body_arrives(self, byte_count: int) -> None:
        """Call this for each piece of a response's body."""
        self._beside -= byte_count + byte_count // BODY_SHARE
        self._reads_large = byte_count >= LARGE_PIECE_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Part of httpcore's interface.

        Raises:
            FetchError `fetch_failed`: the host sent too many bytes that are no body.
        """
        if self._beside > self._most:
            raise FetchError("The URL's host sends too many headers, or its response in very small pieces.")
        data = await self._stream.read(max_bytes if self._reads_large else min(max_bytes, FIRST_READS_BYTES), timeout)
        self._beside += len(data) + READ_COST
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Part of httpcore's interface; a request begins."""
        self._beside, self._most, self._reads_large = 0, MAX_HEAD_BYTES, False
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Part of httpcore's interface."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Closes the connection if the handshake fails or is cancelled."""
        try:
            return GuardedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Part of httpcore's interface."""
        return self._stream.get_extra_info(info)
