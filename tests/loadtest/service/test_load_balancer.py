"""The load balancer of the random faults."""

import subprocess
import sys
import time
from contextlib import suppress

import requests

from loadtest.service.load_balancer import load_balancer
from loadtest.service.machine import free_port


def server(host, port, folder):
    command = [sys.executable, "-m", "http.server", "--bind", host, "--directory", folder, str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(url):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            return requests.get(url, timeout=5)
        time.sleep(0.05)
    raise TimeoutError(url)


def test_a_lost_proxy_gets_no_requests(tmp_path):
    """Two of the three addresses have a server; one of these is killed."""
    port, hosts = free_port(), ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    (tmp_path / "-").mkdir()
    (tmp_path / "-/healthz").touch()
    with server(hosts[0], port, tmp_path) as lost, server(hosts[1], port, tmp_path) as kept:
        for host in hosts[:2]:
            wait_for(f"http://{host}:{port}")
        with load_balancer(hosts, port, tmp_path) as url:
            wait_for(url)
            before = {requests.get(url, timeout=5).status_code for _ in range(6)}
            lost.kill()
            after = {requests.get(url, timeout=5).status_code for _ in range(6)}
        kept.kill()
    assert before == after == {200}
