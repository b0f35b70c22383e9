"""Processes of a service on this machine: all below one, what they are, the memory they use, and their end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil

KILL_TIMEOUT_S = 5.0


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def title_of(process: psutil.Process) -> str:
    """The command line of a process, which Ray may have renamed; empty if the process has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def private_memory_mb(processes: Iterable[psutil.Process]) -> float:
    """Private memory (USS) of all together, MB (1e6 bytes); those that have ended count as 0."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total / 1e6


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to all, then wait until they have ended, at most KILL_TIMEOUT_S."""
    killed = list(processes)
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(killed, timeout=KILL_TIMEOUT_S)
