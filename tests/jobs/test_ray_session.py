"""jobs.ray_session: SIGTERM after Ray has set its own handler."""

from __future__ import annotations

import signal

import psutil
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


def test_a_ray_that_does_not_start_is_started_once_more(monkeypatch, capsys):
    """As on a very busy machine; a cluster that is named is not started here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    outcomes = []

    def init(**_):
        if outcomes.pop(0):
            raise Exception("The current node timed out\nduring startup.")

    @cli_errors("jobs.example")
    def main(*outcomes_, **options):
        outcomes[:] = outcomes_
        connect(**options)
        return 0

    monkeypatch.setattr(ray, "init", init)
    again = "Ray did not start (The current node timed out during startup.). It is started once more.\n"
    assert main(True, False) == 0
    assert capsys.readouterr().err == again
    assert main(True, True) == 1
    ends = "Ray did not start: The current node timed out during startup. Try again when this machine is less busy, or name a cluster"
    assert capsys.readouterr().err == f"{again}jobs.example: {ends} by RAY_ADDRESS\n"
    assert main(True, address="auto") == 1
    assert capsys.readouterr().err == "jobs.example: no connection to Ray: The current node timed out during startup.\n"


@pytest.mark.slow
def test_nothing_is_left_of_a_ray_that_did_not_start(monkeypatch):
    """Its processes would run beside those of the second one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    get_node, asked = ray._private.services.get_node, []

    def late(*place):
        asked.append(place)
        if len(asked) == 1:
            raise Exception("The current node timed out during startup.")
        return get_node(*place)

    monkeypatch.setattr(ray._private.services, "get_node", late)
    connect(num_cpus=1, include_dashboard=False)
    try:
        assert [one.name() for one in psutil.Process().children()].count("raylet") == 1
        assert ray.get(ray.put(1)) == 1
    finally:
        ray.shutdown()
