"""Starts this service on this machine as `serve run` does, on a free loopback port, and stops it cleanly.

Used by the end-to-end tests and the load tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from jobs.command_line import print_progress
from loadtest.service.load_balancer import load_balancer
from loadtest.service.local_cluster import START_TRIES, LocalCluster, Node, NotReady, local_cluster, unwound_by_sigterm
from loadtest.service.machine import free_port
from loadtest.service.node_network import HOSTS
from loadtest.service.processes import KILL_TIMEOUT_S, kill_all, process_tree, title_of
from serve_app.config.ray_env import read_ray_env
from serve_app.config_file import HAPROXY_PORTS

REPOSITORY = Path(__file__).parents[2]
SHIPPED_CONFIG = REPOSITORY / "serve_config.yaml"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S, STOP_CHILDREN_S = 45.0, 5.0

_DEPLOY_FAILED = re.compile(r"Deploying app .* failed|Failed to update the deployments")
_RAY_DID_NOT_START = re.compile(r"timed out during startup|Failed to get node info")
"""What Ray 2.60 says on a machine that is too busy for a moment."""
_STARTED = re.compile(r"started successfully on node '\w+' after [\d.]+s \(PID: (\d+)\)")
"""What Ray Serve's controller logs of each replica, once its constructor has returned."""
_RAYLET_GCS = re.compile(r"--gcs-address=(\S+)")

Edit = Callable[[dict[str, Any]], None]
"""Changes a parsed serve_config.yaml in place."""


@dataclass(frozen=True, slots=True)
class LocalService:
    """A running service.

    Args:
        url: base URL on loopback.
        process: the `serve run` process; Ray's processes are below it, or below the nodes of its cluster.
        folder: Ray's temporary folder of this run, with all logs; removed at the end.
        cluster: its nodes, if it was started on several.
    """

    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    cluster: LocalCluster | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes with replicas, if there are several."""
        return tuple(self.cluster.nodes) if self.cluster else ()

    def replace(self, lost: Node) -> None:
        """Start a node to replace a lost one."""
        if self.cluster is None:
            raise RuntimeError("the service does not run on a cluster of several nodes")
        self.cluster.start_node()
        self.cluster.nodes.remove(lost)

    @property
    def ray_address(self) -> str:
        """Address for `ray.init(address=…)` of another process on this machine."""
        if self.cluster:
            return self.cluster.address
        found = (_RAYLET_GCS.search(title_of(process)) for process in self.processes())
        return next(match.group(1) for match in found if match)

    def replica_pids(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas (Ray names its processes after what they run)."""
        return [child.pid for child in self.processes() if f":{deployment}" in title_of(child)]

    def started_pids(self) -> set[int]:
        """Process ids of all replicas that have started so far; a process has a replica's name before that."""
        logs = (self.folder / "ray").glob("session_2*/logs/serve/controller_*.log")
        return {int(pid) for log in logs for pid in _STARTED.findall(log.read_text(errors="replace"))}

    def processes(self) -> list[psutil.Process]:
        """Every process of this service, Ray's own included."""
        nodes = (self.cluster.head, *self.cluster.nodes) if self.cluster else ()
        return [*process_tree(self.process.pid), *(process for node in nodes for process in node.processes())]

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that `serve run` printed."""
        return "\n".join((self.folder / "serve.log").read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def local_service(
    config: Path = SHIPPED_CONFIG,
    change: Edit | None = None,
    env: dict[str, str] | None = None,
    nodes: int = 0,
    *,
    namespaces: bool = False,
    balanced: bool = False,
) -> Iterator[LocalService]:
    """Run a configuration until the block ends or SIGTERM arrives; says on stderr that it starts.

    Args:
        config: a serve_config.yaml; it gets a free port of loopback and no keys, since the load is sent without one.
        change: edits the parsed file in place.
        env: further environment variables.
        nodes: 0: Ray as `serve run` starts it; else a cluster of so many nodes, with the HTTP proxy on its head.
        namespaces: see `local_cluster`.
        balanced: an HTTP proxy on every node, and a load balancer before them, whose URL the service has; with `namespaces` only.
    Raises:
        NotReady: the service was not ready in time, or a node did not start.
    """
    with ExitStack() as stack:
        stack.enter_context(unwound_by_sigterm())
        # A short path: Ray's socket names hang below it, 107 characters at most.
        folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        print_progress("starting the service, usually half a minute")
        port = free_port()
        environment = service_environment(folder) | (env or {})
        path = _write_config(config, change, port, folder, head_only=nodes > 0 and not balanced, namespaces=namespaces)
        cluster = stack.enter_context(local_cluster(nodes, folder, environment, namespaces=namespaces)) if nodes else None
        url = stack.enter_context(load_balancer(HOSTS, port, folder)) if balanced else f"http://127.0.0.1:{port}"
        for tries_left in reversed(range(START_TRIES)):
            service = LocalService(url, _serve_run(path, folder, environment, cluster), folder, cluster)
            stack.callback(_stop, service)
            try:
                wait_until_ready(service, or_failed=_DEPLOY_FAILED)
                break
            except NotReady:
                if not tries_left or not _RAY_DID_NOT_START.search(service.log_tail(400)):
                    raise
        yield service


def ray_environment() -> dict[str, str]:
    """The environment variables for Ray."""
    return read_ray_env(REPOSITORY / "ray.env")


def _haproxy_of_its_own(folder: Path) -> dict[str, str]:
    """Files and ports for this service's own HAProxy."""
    folder.mkdir()
    files = {"CONFIG_FILE_LOC": "cfg", "SOCKET_PATH": "admin", "SERVER_STATE_FILE": "state", "METRICS_SOCKET_PATH": "metrics"}
    settings = {name: str(folder / file) for name, file in files.items()} | {"SERVER_STATE_BASE": str(folder)}
    ports = {name: str(free_port()) for name in (*HAPROXY_PORTS, "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT")}
    return ports | {f"RAY_SERVE_HAPROXY_{name}": value for name, value in settings.items()}


def wait_until_ready(
    service: LocalService, timeout_s: float = START_TIMEOUT_S, or_failed: re.Pattern[str] | None = None
) -> float:
    """Wait until /ready is 200; returns the seconds it took.

    Args:
        or_failed: what in the log ends the wait. Not for a service that recovers: a replica that ends while others still start makes Ray
            Serve log that the deployment failed, and then start another.
    Raises:
        NotReady: not ready in time, the deployment failed, or the process ended.
    """
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        with suppress(requests.RequestException):
            if requests.get(f"{service.url}/ready", timeout=10).ok:
                return time.monotonic() - began
        if service.process.poll() is not None or (or_failed and or_failed.search(service.log_tail(400))):
            break
        time.sleep(0.1)
    raise NotReady(f"the service was not ready after {time.monotonic() - began:.0f} s; its log ends:\n{service.log_tail()}")


def _write_config(config: Path, change: Edit | None, port: int, folder: Path, *, head_only: bool, namespaces: bool) -> Path:
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document.setdefault("http_options", {}).update(host="127.0.0.1", port=port)
    if head_only:  # on one machine the proxies of several nodes would want the same port
        document["proxy_location"] = "HeadOnly"
    if namespaces:  # HAProxy on the head reaches the Ingresses by their nodes' addresses
        document["http_options"]["host"] = "0.0.0.0"  # in a network namespace of its own, see `bridge`
    ingress = document["applications"][0].setdefault("args", {}).setdefault("ingress", {})
    ingress["auth"] = {"allow_anonymous": namespaces}
    if change is not None:
        change(document)
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def service_environment(folder: Path) -> dict[str, str]:
    """The environment of a service with its own files in `folder` and its own ports."""
    ours = {"RAY_TMPDIR": str(folder), "RAY_ADDRESS": "local", "PYTHONPATH": str(REPOSITORY)}
    return os.environ | ray_environment() | ours | _haproxy_of_its_own(folder / "haproxy")


def _serve_run(config: Path, folder: Path, env: dict[str, str], cluster: LocalCluster | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--app-dir", str(REPOSITORY), str(config)]
    env = env | ({"RAY_ADDRESS": cluster.address} if cluster else {})
    with (folder / "serve.log").open("wb") as log, _interruptible():
        return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within: children accept SIGINT, even if this process ignores it, as background jobs of a shell do."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(service: LocalService) -> None:
    """Stop `serve run` as Ctrl-C does, then kill what is left of its processes."""
    processes = process_tree(service.process.pid)
    with suppress(ProcessLookupError):
        service.process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        service.process.wait(STOP_TIMEOUT_S)
    _, alive = psutil.wait_procs(processes, timeout=STOP_CHILDREN_S)
    kill_all(alive)
    service.process.wait(KILL_TIMEOUT_S)
