"""Resolves host names asynchronously, with a timeout and a limit on concurrent queries per domain.

Uses c-ares (aiodns), which reads /etc/hosts and /etc/resolv.conf. Unlike with getaddrinfo on threads, a name server that never answers
delays only the names of its own domain.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterable

import aiodns
from aiodns.error import ARES_EBADNAME, ARES_ENODATA, ARES_ENOTFOUND, ARES_ETIMEOUT, DNSError

LOOKUP_TIMEOUT_S, LOOKUP_TRIES = 1.5, 2
"""Timeout of one query to one name server, seconds, and number of tries. The URL's `connect_timeout_s` bounds the whole look-up."""
MAX_LOOKUPS_PER_DOMAIN = 8
"""Concurrent look-ups per domain; others wait."""


def domain_of(name: str) -> str:
    """The last two labels of a name, in lower case."""
    return ".".join(name.lower().rstrip(".").rsplit(".", 2)[-2:])


class DnsResolver:
    """Resolves names with the machine's configuration. For one event loop."""

    def __init__(self, nameservers: Iterable[str] | None = None) -> None:
        self._nameservers = list(nameservers) if nameservers else None
        self._resolver: aiodns.DNSResolver | None = None
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._interested: Counter[str] = Counter()

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return all addresses of a host, IPv4 and IPv6.

        Raises:
            socket.gaierror: EAI_NONAME if the name has no address, EAI_AGAIN if the name servers have no answer.
            TimeoutError: no name server answered.
        """
        domain = domain_of(host)
        self._interested[domain] += 1
        try:
            async with self._turns.setdefault(domain, asyncio.Semaphore(MAX_LOOKUPS_PER_DOMAIN)):
                return await self._look_up(host, port)
        finally:
            self._interested[domain] -= 1
            if not self._interested[domain]:
                del self._interested[domain], self._turns[domain]

    async def _look_up(self, host: str, port: int) -> list[str]:
        if host == "localhost":  # c-ares adds ::1 to what /etc/hosts says (RFC 6761)
            entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        if self._resolver is None:
            self._resolver = aiodns.DNSResolver(self._nameservers, timeout=LOOKUP_TIMEOUT_S, tries=LOOKUP_TRIES)
        try:
            found = await self._resolver.getaddrinfo(host, socket.AF_UNSPEC, port, type=socket.SOCK_STREAM)
        except DNSError as error:
            if error.args[0] == ARES_ETIMEOUT:
                raise TimeoutError from error
            missing = error.args[0] in (ARES_ENOTFOUND, ARES_ENODATA, ARES_EBADNAME)
            raise socket.gaierror(socket.EAI_NONAME if missing else socket.EAI_AGAIN, error.args[-1]) from error
        return list(dict.fromkeys(node.addr[0].decode() for node in found.nodes))

    async def aclose(self) -> None:
        """Cancel all look-ups."""
        if self._resolver is not None:
            await self._resolver.close()
