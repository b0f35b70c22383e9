"""Freed memory stays with the process, where the C library can be set so."""

import subprocess
import sys

import pytest

from jobs.training.loop import allocator

PROGRAM = """
import resource, sys
from jobs.training.loop.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def touch():
    block = bytearray(64 * 2**20)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_big_blocks_are_not_faulted_in_again():
    """Five blocks of 64 MB, one after the other, cost next to no page faults instead of thousands each time."""
    if not allocator.keep_freed_memory():
        pytest.skip("this C library is not glibc")
    assert page_faults("kept") < page_faults("returned") / 10
