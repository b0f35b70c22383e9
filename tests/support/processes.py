"""State of processes that a test started or ended."""

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a process that ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
