"""jobs.ray_session: SIGTERM after Ray has set its own handler."""

from __future__ import annotations

import signal

import pytest
import ray

from jobs.command_line import cli_errors
from jobs.ray_session import connect


@pytest.fixture
def inits(monkeypatch):
    """The options of each `ray.init`, which sets a handler as Ray does."""
    calls = []

    def init(**options):
        calls.append(options)
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler"))

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_sigterm_ends_the_command_as_before(inits, capsys):
    @cli_errors("jobs.example")
    def main():
        connect(log_to_driver=False)
        signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert main() == 128 + signal.SIGTERM
    assert inits == [{"log_to_driver": False}]
    assert capsys.readouterr().err == "jobs.example: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_connected_process_stays_connected(inits, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    connect()
    assert inits == []


@pytest.mark.parametrize("kind", [Exception, RuntimeError, ConnectionError])
def test_a_cluster_that_cannot_be_used_is_reported_in_a_line(monkeypatch, capsys, kind):
    """Of another version of Python, say, or one that does not start in time."""

    def init(**_):
        raise kind("Version mismatch:\n    Ray: 2.60.0")

    monkeypatch.setattr(ray, "init", init)

    @cli_errors("jobs.example")
    def main():
        connect()
        return 0

    assert main() == 1
    assert capsys.readouterr().err == "jobs.example: no connection to Ray: Version mismatch: Ray: 2.60.0\n"
