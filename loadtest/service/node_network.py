"""A network namespace for each node of a local cluster, joined by a bridge, so that a node can be cut off: Linux, CAP_NET_ADMIN.

    bridge 10.93.0.1 (head, load) ──veth── 10.93.0.2 (node) ──veth── 10.93.0.3 (node) ...

A node that is cut off looks as if it had lost power: nothing that is sent to it is acknowledged, no connection is reset. SIGSTOP
is no such test, because the kernel of a stopped process still acknowledges what arrives.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

_PREFIX = "10.93.0."
HOSTS = [f"{_PREFIX}{host}" for host in range(1, 33)]
"""Addresses of the bridge (the head) and of the nodes, in the order in which they start."""


@dataclass(frozen=True, slots=True)
class NodeLink:
    """The connection of one node.

    Args:
        namespace: name of the node's network namespace.
        interface: the bridge's end of the veth pair.
        address: IPv4 address of the node.
    """

    namespace: str
    interface: str
    address: str

    def command(self, command: list[str]) -> list[str]:
        """The command line that runs `command` in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut(self) -> None:
        """Cut the node off."""
        _ip("link", "set", self.interface, "down")


@dataclass(frozen=True, slots=True)
class Bridge:
    """Joins the nodes; `address` is that of the bridge itself, IPv4."""

    name: str
    address: str = f"{_PREFIX}1"
    _links: list[NodeLink] = field(default_factory=list)
    _hosts: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def connect(self) -> NodeLink:
        """Make a namespace with an interface on the bridge."""
        host = next(self._hosts)
        link = NodeLink(f"{self.name}n{host}", f"{self.name}v{host}", f"{_PREFIX}{host}")
        _ip("netns", "add", link.namespace)
        self._links.append(link)
        _ip("link", "add", link.interface, "type", "veth", "peer", "name", "eth0", "netns", link.namespace)
        _ip("link", "set", link.interface, "master", self.name, "up")
        for end in ("eth0", "lo"):
            _ip("-n", link.namespace, "link", "set", end, "up")
        _ip("-n", link.namespace, "addr", "add", f"{link.address}/24", "dev", "eth0")
        _ip("-n", link.namespace, "route", "add", "default", "via", self.address)
        return link


@contextmanager
def bridge() -> Iterator[Bridge]:
    """A bridge; it and the namespaces connected to it are deleted at the end."""
    made = Bridge(f"rt{os.getpid()}")
    _ip("link", "add", made.name, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        _ip("route", "add", "default", "dev", made.name)  # Ray 2.60 does not start if there is none
        yield made
    finally:
        for link in made._links:
            _ip("netns", "delete", link.namespace)
        _ip("link", "delete", made.name)


def may_make_networks() -> bool:
    """Whether this process may make network namespaces, and is in one that has no interface but loopback: as under `unshare --net`.

    Where there are others, the service would be reachable from outside: HAProxy and the Ingresses listen on all addresses.
    """
    if set(psutil.net_if_addrs()) != {"lo"}:
        return False
    try:
        with bridge() as made:
            made.connect()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
