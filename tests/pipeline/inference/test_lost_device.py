"""The end of a process whose device failed."""

import subprocess
import sys

from pipeline.inference.lost_device import EXIT_STATUS

PROGRAM = """
import logging, threading, time
from logging.handlers import MemoryHandler
from pipeline.errors import EngineLost
from pipeline.inference.lost_device import end_process

logger = logging.getLogger("replica")
logger.addHandler(MemoryHandler(1000, logging.CRITICAL + 1, logging.StreamHandler()))

def run():
    try:
        raise EngineLost("the GPU failed") from RuntimeError("CUDA error: an illegal memory access")
    except EngineLost as error:
        end_process(error, logger)

threading.Thread(target=run).start()
time.sleep(60)
"""


def test_it_ends_from_any_thread_and_says_why():
    """At once, with what buffered handlers hold."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == EXIT_STATUS
    assert "to be replaced: the GPU failed" in ended.stderr
    assert "CUDA error: an illegal memory access" in ended.stderr
