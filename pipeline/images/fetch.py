"""Fetches images from untrusted URLs, within limits and from the public internet only.

    URL ─▶ form (scheme, host, port, no credentials) ─▶ GET ─▶ status, encoding, length ─▶ body, counted ─▶ bytes
            ▲                                            │
            └──────── redirect, checked anew, at most 3 ─┘      addresses are checked in network_guard.py

Uses httpcore, because it has no proxies or settings from the environment, no cookies, no automatic redirects, and an interface for the
network. One timeout bounds everything; nothing is decompressed. Messages contain no addresses and no URLs.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import ssl
import time
from dataclasses import dataclass

import certifi
import httpcore
import httpx

from pipeline.errors import ConfigurationError, DeadlineExceeded, FetchError, LimitExceeded
from pipeline.images.address_policy import AddressPolicy, is_well_formed_host
from pipeline.images.decode import check_byte_count
from pipeline.images.network_guard import GuardedBackend, GuardedStream, Resolver
from pipeline.images.resolver import DnsResolver

MAX_URL_CHARS = 8192
KEEPALIVE_CONNECTIONS = 32
KEEPALIVE_S = 15.0
FIRST_RETRY_DELAY_S = 0.1

_AUTHORITY = re.compile(r"[^/]*//([^/?#]*).*", re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_TRANSIENT_STATUSES = frozenset({502, 503, 504})
_LATER_STATUSES = frozenset({408, 429})
"""Worth a retry, but not at once."""
_COMPRESSIONS = frozenset({"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd", "dcb", "dcz"})
"""IANA HTTP Content Coding Registry. Hosts also send words that are none, such as `none`, `binary` or `utf-8`, which mean nothing."""
_HEADERS = [
    (b"User-Agent", b"rtmdet-ins-serve"),
    (b"Accept", b"image/*,*/*;q=0.1"),
    (b"Accept-Encoding", b"identity"),
]


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Limits and permissions for fetching.

    Args:
        connect_timeout_s: longest time for DNS and connecting, and again for TLS, seconds.
        read_timeout_s: longest time without a byte from the server, seconds.
        total_timeout_s: longest time for one URL, including DNS, redirects, retries and the body, seconds.
        max_bytes: largest body, bytes.
        max_redirects: most redirects that are followed.
        retries: retries after a connection error or status 502, 503 or 504.
        allowed_ports: TCP ports.
        allowed_networks: non-public networks (CIDR) that are allowed.
        allowed_hosts: names that may resolve to any address; ".example.net" means all names below example.net.
        ca_file: PEM file of the certificate authorities trusted for https, `~` is the home folder; None takes certifi's.
    """

    connect_timeout_s: float = 3.0
    read_timeout_s: float = 5.0
    total_timeout_s: float = 10.0
    max_bytes: int = 20_000_000
    max_redirects: int = 3
    retries: int = 1
    allowed_ports: tuple[int, ...] = (80, 443, 8080, 8443)
    allowed_networks: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if min(self.connect_timeout_s, self.read_timeout_s, self.total_timeout_s, self.max_bytes) <= 0:
            raise ConfigurationError("timeouts and max_bytes must be above 0")
        if min(self.max_redirects, self.retries) < 0:
            raise ConfigurationError("max_redirects and retries must be at least 0")


class TransientFetchError(FetchError):
    """A FetchError after which a retry may work."""

    code = "fetch_unavailable"


class LongBody(LimitExceeded):
    """Signal: a body is longer than the caller of `fetch` wants it."""

    code = "image_too_large"


class Fetcher:
    """Fetches URLs over a pool of keep-alive connections. For one event loop.

    Args:
        policy: limits and permissions.
        resolve: returns the addresses of a host; None uses DnsResolver.
        connector: connects to an address that passed the check; None uses httpcore's.
    """

    def __init__(
        self, policy: FetchPolicy, resolve: Resolver | None = None, connector: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._policy = policy
        self._resolver = resolve or DnsResolver()
        addresses = AddressPolicy.from_text(policy.allowed_networks, policy.allowed_hosts)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=make_ssl_context(policy.ca_file),
            max_connections=None,
            max_keepalive_connections=KEEPALIVE_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=GuardedBackend(addresses, self._resolver, connector),
        )

    async def fetch(self, url: str, deadline: float | None = None, at_most: int | None = None) -> bytes:
        """Fetch the body of a URL.

        Args:
            url: http or https URL.
            deadline: the request's deadline, seconds as `time.time()`; None for none.
            at_most: give up a longer body, bytes: before it is read, if the host says its length.
        Returns:
            The body, at most `max_bytes`, never empty.
        Raises:
            FetchError: `url_refused` (by policy), `fetch_timeout`, `fetch_unavailable`, or `fetch_failed`.
            LimitExceeded: `image_too_large`.
            LongBody: the body is longer than `at_most`.
            DeadlineExceeded: the deadline passed before `total_timeout_s` did.
        """
        target = check_url(url, self._policy)
        time_left_s = float("inf") if deadline is None else deadline - time.time()
        try:
            async with asyncio.timeout(min(time_left_s, self._policy.total_timeout_s)):
                return await self._follow(target, at_most)
        except TimeoutError as error:
            if time_left_s < self._policy.total_timeout_s:
                raise DeadlineExceeded("The request's deadline passed while an image was fetched.") from error
            raise _timed_out() from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
        if isinstance(self._resolver, DnsResolver):
            await self._resolver.aclose()

    async def _follow(self, target: httpx.URL, at_most: int | None) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get_with_retries(target, at_most)
            if isinstance(answer, bytes):
                return answer
            target = answer
        raise FetchError(f"The URL redirects more than {self._policy.max_redirects} times.")

    async def _get_with_retries(self, target: httpx.URL, at_most: int | None) -> bytes | httpx.URL:
        for attempt in range(self._policy.retries):
            try:
                return await self._get(target, at_most)
            except TransientFetchError:
                await asyncio.sleep(FIRST_RETRY_DELAY_S * 2**attempt)
        return await self._get(target, at_most)

    async def _get(self, target: httpx.URL, at_most: int | None) -> bytes | httpx.URL:
        """Send one request; returns the body, or the URL of a redirect."""
        response = await self._send(target)
        try:
            location = _header(response, b"location")
            if response.status in _REDIRECT_STATUSES and location is not None:
                return check_url(_join(target, location), self._policy)
            return await self._read(response, at_most)
        finally:  # shielded: httpcore would never use or close a connection again whose release is cancelled
            await asyncio.shield(asyncio.create_task(response.aclose()))

    async def _send(self, target: httpx.URL) -> httpcore.Response:
        policy = self._policy
        request = httpcore.Request(
            "GET",
            httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path),
            headers=[(b"Host", target.netloc), *_HEADERS],
            extensions={"timeout": {"connect": policy.connect_timeout_s, "read": policy.read_timeout_s}},
        )
        try:
            return await self._pool.handle_async_request(request)
        except asyncio.CancelledError:
            await self._close_abandoned()
            raise
        except httpcore.TimeoutException as error:
            raise _timed_out() from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            if isinstance(error.__context__, ssl.SSLError):
                raise FetchError("The URL's host could not be verified over TLS.") from error
            raise TransientFetchError("The connection to the URL's host failed.") from error

    async def _close_abandoned(self) -> None:
        """Close the connections that neither serve a request nor can serve another one.

        httpcore 1.0.9 keeps a connection open for good whose request is cancelled when it has just connected.
        """
        used = {request.connection for request in self._pool._requests}
        abandoned = [each for each in self._pool.connections if each not in used and not each.is_idle()]
        for connection in abandoned:
            self._pool._connections.remove(connection)
        for connection in abandoned:
            await connection.aclose()

    async def _read(self, response: httpcore.Response, at_most: int | None) -> bytes:
        _check_head(response)
        stream: GuardedStream = response.extensions["network_stream"]
        stream.head_ends()
        length, body = _header(response, b"content-length") or b"", bytearray()
        self._check_length(int(length) if length.isdigit() else 0, at_most)
        try:
            async for chunk in response.aiter_stream():
                body += chunk
                stream.body_arrives(len(chunk))
                self._check_length(len(body), at_most)
        except httpcore.TimeoutException as error:
            raise _timed_out() from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise FetchError("The connection to the URL's host broke off.", code=TransientFetchError.code) from error
        if not body:
            raise FetchError("The response of the URL's host is empty.")
        return bytes(body)

    def _check_length(self, byte_count: int, at_most: int | None) -> None:
        check_byte_count(byte_count, self._policy.max_bytes)
        if at_most is not None and byte_count > at_most:
            raise LongBody(f"The body of the URL is longer than {at_most} bytes.")


def check_url(url: str, policy: FetchPolicy) -> httpx.URL:
    """Check scheme, host and port of a URL, and that it has no credentials. Its addresses are checked when connecting.

    Raises:
        FetchError: `url_refused`; the message gives the reason.
    """
    if len(url) > MAX_URL_CHARS:
        raise _refused(f"it has more than {MAX_URL_CHARS} characters")
    try:
        parsed = httpx.URL(url.strip())
        host = parsed.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise _refused("it is malformed") from error
    if parsed.scheme not in _DEFAULT_PORTS:
        raise _refused("only http and https are fetched")
    if "@" in _AUTHORITY.sub(r"\1", url, count=1):
        raise _refused("it carries credentials")
    if not is_well_formed_host(host):
        raise _refused("its host is not a plain name or address")
    port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if port not in policy.allowed_ports:
        raise _refused("its port is not allowed (image_loader.fetch.allowed_ports)")
    return parsed


def _join(base: httpx.URL, location: bytes) -> str:
    try:
        return str(base.join(location.decode("utf-8")))
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise _refused("it redirects to a malformed URL") from error


def _check_head(response: httpcore.Response) -> None:
    if response.status in _TRANSIENT_STATUSES:
        raise TransientFetchError(f"The URL's host answered with status {response.status}.")
    if not 200 <= response.status < 300:
        code = TransientFetchError.code if response.status in _LATER_STATUSES else None
        raise FetchError(f"The URL's host answered with status {response.status}.", code=code)
    codings = b",".join(value for key, value in response.headers if key.lower() == b"content-encoding").decode("latin-1")
    if any(coding.strip().lower() in _COMPRESSIONS for coding in codings.split(",")):
        raise FetchError("The URL's host sent a compressed response, although the request asked for none.")


def _header(response: httpcore.Response, name: bytes) -> bytes | None:
    return next((value for key, value in response.headers if key.lower() == name), None)


@functools.cache
def make_ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """The SSL context for https; see `FetchPolicy.ca_file`.

    Raises:
        ConfigurationError: the file cannot be read as PEM certificates.
    """
    path = os.path.expanduser(ca_file) if ca_file else certifi.where()
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigurationError(f"image_loader.fetch.ca_file: {path} cannot be read as PEM certificates ({error})") from error


def _refused(reason: str) -> FetchError:
    return FetchError(f"The URL is refused: {reason}.", code="url_refused")


def _timed_out() -> FetchError:
    return FetchError("The URL's host took too long to answer.", code="fetch_timeout")
