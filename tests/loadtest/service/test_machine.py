"""Free ports."""

import socket

from loadtest.service.machine import PORTS, free_port


def test_a_free_port_is_none_that_connections_get():
    """And can be listened on."""
    for _ in range(20):
        port = free_port()
        assert PORTS[0] <= port < PORTS[1]
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_a_port_in_use_is_left_out(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        taken = server.getsockname()[1]
        free = free_port()
        ports = iter([taken, free])
        monkeypatch.setattr("loadtest.service.machine._RANDOM.randrange", lambda *_: next(ports))
        assert free_port() == free
