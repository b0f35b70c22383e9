"""Connects a command to Ray, and keeps what the command does on SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from typing import Any

import ray
from ray._private.node import Node

from jobs.command_line import print_progress, raise_terminated


def connect(**options: Any) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray here; nothing if this process is connected already.

    Ray gives its processes 30 s to start, which is too little on a very busy machine: they are started once more.
    `ray.init` replaces the handler of SIGTERM by one that prints a C++ stack trace and ends the process at once.

    Args:
        options: of `ray.init`.
    Raises:
        ConnectionError: Ray did not start in time, or the cluster's Ray or Python has another version.
    """
    if ray.is_initialized():
        return
    may_be_busy = not (options.get("address") or os.environ.get("RAY_ADDRESS"))
    try:
        ray.init(**options)
    except Exception as error:  # of no type of its own: Exception, RuntimeError
        reason = " ".join(str(error).split())
        if not may_be_busy or "mismatch" in reason:
            raise ConnectionError(f"no connection to Ray: {reason}") from error
        print_progress(f"Ray did not start ({reason}). It is started once more.")
        _end_processes(error)
        try:
            ray.init(**options)
        except Exception as again:
            advice = "Try again when this machine is less busy, or name a cluster by RAY_ADDRESS"
            raise ConnectionError(f"Ray did not start: {' '.join(str(again).split())} {advice}") from again
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_terminated)


def _end_processes(error: Exception) -> None:
    """End the processes of a Ray that did not start. `ray.shutdown` does not know those of a node that raised while it was made."""
    ray.shutdown()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
