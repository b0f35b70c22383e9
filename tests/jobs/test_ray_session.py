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


def test_a_connected_process_stays_as_it_is(inits, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    connect()
    assert inits == []
