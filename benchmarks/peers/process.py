"""Runs a peer as a process in its own session: starts it, waits until it scores, and stops it with all its children."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

from benchmarks.peers.triton_wire import TRITON
from loadtest.load.traffic import JSON_HEADERS, SCORE, Wire
from loadtest.service.local_cluster import unwound_by_sigterm
from loadtest.service.machine import free_port
from loadtest.service.processes import KILL_TIMEOUT_S, kill_all, process_tree

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0

OWN_PYTHON = REPOSITORY / ".venv-peers/bin/python"
PYTHONS = {
    "azure_loop": Path(sys.executable),
    "serve_monolith": Path(sys.executable),
    "litserve": Path(sys.executable),
    "bentoml": OWN_PYTHON,
    "mosec": Path(sys.executable),
    "pytriton": OWN_PYTHON,
}
"""The peers, and who runs each."""

WIRES = {"pytriton": TRITON}
"""Request formats of peers with another contract."""


@contextmanager
def peer_process(name: str, model: str, body: bytes) -> Iterator[str]:
    """Run a peer on a free loopback port until the block ends; gives its base URL.

    Args:
        name: of PYTHONS.
        model: name, or absolute path.
        body: a request that a ready peer answers with 200.
    Raises:
        RuntimeError: it was not ready in time, or its interpreter is missing; the message holds the end of its log.
    """
    if not PYTHONS[name].exists():
        raise RuntimeError(f"{name} runs in {PYTHONS[name]}, which does not exist: see benchmarks/peers/{name}.py")
    port = free_port()
    command = [str(PYTHONS[name]), "-m", f"benchmarks.peers.{name}", "--port", str(port), "--model", model]
    with session_process(command) as (process, log):
        url = f"http://127.0.0.1:{port}"
        wait_until_scoring(url, body, process, log, wire=WIRES.get(name, SCORE))
        yield url


@contextmanager
def session_process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process, and the file of its output; both, its temporary files and whatever it started are gone at the end, also by SIGTERM."""
    with unwound_by_sigterm():
        yield from _session_process(command)


def _session_process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: Ray's socket names hang below it
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = ours | {"TMPDIR": str(folder), "BENTOML_HOME": str(folder / "bentoml"), "PYTHONPATH": str(REPOSITORY)}
    log = folder / "peer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process, log
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_scoring(
    url: str,
    body: bytes,
    process: subprocess.Popen[bytes],
    log: Path,
    timeout_s: float = START_TIMEOUT_S,
    wire: Wire = SCORE,
) -> None:
    """Post until the answer is 200.

    Raises:
        RuntimeError: not in time, or the process ended.
    """
    began, said = time.monotonic(), "no answer"
    while time.monotonic() - began < timeout_s and process.poll() is None:
        with suppress(requests.RequestException):
            answer = requests.post(f"{url}{wire.path}", data=wire.request(body), headers=JSON_HEADERS, timeout=60)
            if answer.status_code == 200:
                return
            said = f"status {answer.status_code}"
        time.sleep(0.2)
    why = f"ended with {process.returncode}" if process.returncode is not None else f"{said} within {timeout_s:.0f} s"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise RuntimeError(f"{' '.join(map(str, process.args))}: {why}; its log ends:\n{tail}")  # type: ignore[arg-type]


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as an operator would; then end what is left of its family."""
    family = _family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    family |= _family(process.pid)
    _, alive = psutil.wait_procs(family, timeout=2)
    kill_all(alive)
    process.wait(KILL_TIMEOUT_S)


def _family(pid: int) -> set[psutil.Process]:
    """The process, all below it, and all of its session, which orphans stay in."""
    family = set(process_tree(pid))
    for other in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(other.pid) == pid:
                family.add(other)
    return family
