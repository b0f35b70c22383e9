"""Describes this machine for results (processor, memory, versions, commit), prints results, and finds free ports."""

from __future__ import annotations

import json
import os
import platform
import random
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("ray", "torch", "openvino", "mmdet", "numpy", "pillow", "opencv-python")
PORTS = 20_000, 32_000
_RANDOM = random.SystemRandom()  # seeds of tests must not give two processes the same ports


def free_port() -> int:
    """A free TCP port on loopback.

    It is none of those that the kernel gives to connections (from 32768 on Linux) or Ray to its workers (10002 to 19999): one of them would
    be taken again before the server that it is for has started.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", _RANDOM.randrange(*PORTS)))
            return int(probe.getsockname()[1])


def describe_machine() -> dict[str, object]:
    """Facts about this machine, JSON-ready, to store with every result."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def print_results(facts: Mapping[str, Any], output: Path | None) -> None:
    """Print results as one line of JSON, then write it to `output` if given: on a full disk the results are on the screen."""
    line = json.dumps(facts)
    print(line)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(line + "\n", encoding="utf-8")


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
