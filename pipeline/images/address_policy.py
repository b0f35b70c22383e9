"""Decides which addresses an image URL may connect to: public ones, and the operator's exceptions (against SSRF).

Checking host names is not enough: a name can resolve to any address, and to another one a moment later. So the addresses are checked when
the connection is made (`network_guard.py`). Host names are only checked for their form.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pipeline.errors import ConfigurationError

FORBIDDEN_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host on this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba Cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, on a public address
        "169.254.0.0/16",  # link-local; the clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
"""IANA IPv4 Special-Purpose Address Registry, multicast, and cloud agents on public addresses."""

PUBLIC_IPV6 = IPv6Network("2000::/3")
"""IANA's global unicast allocation. Loopback, mapped, NAT64, unique-local, link-local and multicast addresses are outside."""

FORBIDDEN_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, carries any IPv4 address
        "3fff::/20",  # documentation
    )
)
"""Networks of the IANA IPv6 Special-Purpose Address Registry that are inside PUBLIC_IPV6."""

NAT64 = tuple(IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48"))
"""NAT64 prefixes; the last 32 bits of such an address are the IPv4 address that the translator connects to (RFC 6052, RFC 8215)."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """The public internet, plus the operator's exceptions.

    Args:
        allowed_networks: non-public networks (CIDR) that are allowed. An IPv6 address that contains an IPv4 address (NAT64, mapped, 6to4,
            Teredo) is permitted only if both are.
        allowed_hosts: host names that may resolve to any address; ".example.net" means all names below example.net.
    """

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, allowed_networks: tuple[str, ...], allowed_hosts: tuple[str, ...]) -> AddressPolicy:
        """Parse the operator's lists; raises ConfigurationError for an invalid network."""
        try:
            networks = tuple(ipaddress.ip_network(network) for network in allowed_networks)
        except ValueError as error:
            raise ConfigurationError(f"allowed_networks: {error}") from error
        return cls(networks, tuple(host.lower().rstrip(".") for host in allowed_hosts))

    def permits(self, host: str, address: str) -> bool:
        """Whether connecting to `address`, to which `host` resolved, is allowed."""
        return self._lists_host(host) or self._permits_address(address)

    def _lists_host(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(name.endswith(entry) if entry.startswith(".") else name == entry for entry in self.allowed_hosts)

    def _permits_address(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return all(is_public(each) or self._allows(each) for each in _reached_by(address))

    def _allows(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.allowed_networks)


def _reached_by(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that a connection to `address` may reach: itself, and the IPv4 address that it contains, if any."""
    yield address
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if any(address in network for network in NAT64):
            carried = IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried:
            yield carried


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the public internet; False for addresses that contain an IPv4 address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_IPV4)
    if address.scope_id is not None:
        return False
    return address in PUBLIC_IPV6 and not any(address in network for network in FORBIDDEN_IPV6)


def is_well_formed_host(host: str) -> bool:
    """Whether a host is a plain name or an address in its canonical form.

    False for names with unusual characters and for other spellings of IPv4 addresses, such as 127.1, 0x7f000001, 0177.0.0.1 and
    2130706433. Source: WHATWG URL Standard, "ends in a number".
    """
    if ":" in host:
        return _is_address(host) and "%" not in host
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _is_address(host)
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
