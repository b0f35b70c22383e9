"""Runs a Ray cluster of several nodes on this machine, each started with `ray start --block`.

    head (no CPUs: no replicas) ◀── node ◀── node ...

With `namespaces` each node has a network namespace of its own (node_network.py) and can be cut off. Without namespaces, the HTTP
proxy runs on the head only: those of several nodes would need the same port.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.command_line import CommandFault
from loadtest.service.machine import free_port
from loadtest.service.node_network import NodeLink, bridge
from loadtest.service.processes import KILL_TIMEOUT_S, kill_all, process_tree

CPUS_PER_NODE = 4
"""Logical CPUs per node: one node of two can hold all replicas."""
_OBJECT_STORE_BYTES = 200_000_000
_START_TIMEOUT_S = 60.0
START_TRIES = 3
"""On a busy machine a node may fail to start: Ray 2.60's raylet exits if its agent has not started within 15 s."""
_STOP_TIMEOUT_S = 20.0


class NotReady(CommandFault):
    """A service or a node of its cluster did not start; the message holds the end of its log."""


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Within: SIGTERM raises SystemExit, so that everything started in the block is stopped.

    Only once: `timeout` and service managers send it twice, and the second one must not interrupt the clean-up. Does nothing in threads
    other than the main one, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class Node:
    """One node: the `ray start` process, and below it the raylet, its agents and its workers.

    Args:
        process: `ray start --block`.
        link: its connection, if it has a network namespace of its own.
    """

    process: subprocess.Popen[bytes]
    link: NodeLink | None = None

    def processes(self) -> list[psutil.Process]:
        """Every process of this node."""
        return process_tree(self.process.pid)

    def kill(self) -> None:
        """Simulate the loss of the node: SIGKILL to all its processes at once."""
        kill_all(self.processes())
        self.process.wait(KILL_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the node gracefully, then kill what is left of it."""
        processes = self.processes()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_TIMEOUT_S)
        kill_all(processes)
        self.process.wait(KILL_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A running cluster.

    Args:
        address: as for `ray.init`.
        nodes: without the head; `start_node` adds one.
        start_node: starts a node; raises NotReady if it does not start in time.
    """

    address: str
    head: Node
    nodes: list[Node]
    start_node: Callable[[], Node]


@contextmanager
def local_cluster(nodes: int, folder: Path, env: Mapping[str, str], *, namespaces: bool = False) -> Iterator[LocalCluster]:
    """Start a head without CPUs and `nodes` nodes; stops all of them at the end.

    Args:
        folder: for logs.
        env: environment of every node, including `ray.env`.
        namespaces: give each node a network namespace of its own; needs CAP_NET_ADMIN.
    Raises:
        NotReady: a node did not start in time; the message holds the end of its log.
    """
    env = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    port = free_port()
    with ExitStack() as stack:
        joined = stack.enter_context(bridge()) if namespaces else None
        host = joined.address if joined else "127.0.0.1"
        address = f"{host}:{port}"
        head = stack.enter_context(
            _node(["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"], folder, "head", env, host)
        )
        count = itertools.count()

        def start_node(tries: int = START_TRIES) -> Node:
            """Add a node; try again if it does not start in time."""
            arguments = [f"--address={address}", f"--num-cpus={CPUS_PER_NODE}"]
            try:
                link = joined.connect() if joined else None
                started = stack.enter_context(_node(arguments, folder, f"node{next(count)}", env, host, link))
            except NotReady:
                if tries == 1:
                    raise
                return start_node(tries - 1)
            cluster.nodes.append(started)
            return started

        cluster = LocalCluster(address, head, [], start_node)
        for _ in range(nodes):
            start_node()
        yield cluster


@contextmanager
def _node(
    arguments: list[str], folder: Path, name: str, env: Mapping[str, str], host: str, link: NodeLink | None = None
) -> Iterator[Node]:
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--node-ip-address={link.address if link else host}",
        "--log-color=false",
    ]
    command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "metrics-export", "runtime-env-agent")]
    command += arguments
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            link.command(command) if link else command,
            env=dict(env),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    node = Node(process, link)
    try:
        _wait_until_started(process, log)
        yield node
    finally:
        node.stop()


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotReady(f"`ray start` did not come up; its log ends:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
