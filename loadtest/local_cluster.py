"""A Ray cluster of several nodes on this machine, each started as an operator starts one: `ray start --block`.

    head (no CPUs: no replicas) ◀── node ◀── node ...

What one machine cannot show: an HTTP proxy on every node (they would want the same port), and a network that falls silent.
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
from loadtest.machine import free_port

CPUS_A_NODE = 4
"""As Ray counts them: enough for all replicas when one node of two is left."""
_OBJECT_STORE_BYTES = 200_000_000
_START_TIMEOUT_S = 60.0
START_TRIES = 3
"""Ray 2.60's raylet ends itself where its agent has not started within 15 s: on a busy machine. A supervisor would start it again."""
_STOP_TIMEOUT_S = 20.0


class NotReady(CommandFault):
    """A service or a node of its cluster did not start; the message holds the end of its log."""


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Within a block, SIGTERM raises SystemExit, so that what the block started is ended on the way out.

    Once: `timeout` and service managers send it twice, and the second must not cut the cleaning up short. In other threads than the main
    one, where Python takes no signals, it does nothing.
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
    """One node: the `ray start` process, and below it the raylet, its agents and its workers."""

    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        """Every process of this node."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Lose the node: SIGKILL to all of it at once, nothing is said to anybody."""
        family = self.processes()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)
        self.process.wait(5)

    def stop(self) -> None:
        """End it in order, then whatever is left of it."""
        family = self.processes()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_TIMEOUT_S)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A running cluster.

    Args:
        address: as for `ray.init`.
        nodes: the head not among them; `start_node` adds one.
        start_node: NotReady where it does not start in time.
    """

    address: str
    head: Node
    nodes: list[Node]
    start_node: Callable[[], Node]


@contextmanager
def local_cluster(nodes: int, folder: Path, env: Mapping[str, str]) -> Iterator[LocalCluster]:
    """Start a head without CPUs and `nodes` nodes; end them, also those that were killed meanwhile.

    Args:
        folder: for logs.
        env: environment of every node; `ray.env` belongs to it.
    Raises:
        NotReady: a node did not start in time; the message holds the end of its log.
    """
    env = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        head = stack.enter_context(
            _node(["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"], folder, "head", env)
        )
        count = itertools.count()

        def start_node(tries: int = START_TRIES) -> Node:
            arguments = [f"--address={address}", f"--num-cpus={CPUS_A_NODE}"]
            try:
                started = stack.enter_context(_node(arguments, folder, f"node{next(count)}", env))
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
def _node(arguments: list[str], folder: Path, name: str, env: Mapping[str, str]) -> Iterator[Node]:
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--log-color=false",
    ]
    command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "metrics-export", "runtime-env-agent")]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments], env=dict(env), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    node = Node(process)
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
