"""Connects a command to Ray, and keeps what the command does on SIGTERM."""

from __future__ import annotations

import signal
import threading
from typing import Any

import ray

from jobs.command_line import raise_terminated


def connect(**options: Any) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray here; nothing if this process is connected already.

    `ray.init` replaces the handler of SIGTERM by one that prints a C++ stack trace and ends the process at once.

    Args:
        options: of `ray.init`.
    Raises:
        ConnectionError: Ray did not start in time, or the cluster's Ray or Python has another version.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(**options)
    except Exception as error:  # of no type of its own: Exception, RuntimeError
        raise ConnectionError(f"no connection to Ray: {' '.join(str(error).split())}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_terminated)
