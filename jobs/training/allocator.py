"""Keep the memory that big tensors free, instead of handing it back to the kernel and faulting it in again.

glibc gives every block of more than 32 MB back with munmap and takes it anew with mmap, and the kernel then zeroes each
page as it is touched. A network that makes the same large activations over and over pays that at every step. Measured
here (2 virtual cores, training RTMDet-Ins-nano at 480 px, batch 16): 1.65 s a step with the cores wholly in the kernel,
0.68 s with the settings below.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # /usr/include/malloc.h
NEVER_TRIM_BYTES = -1  # mallopt takes an int and uses it as a size: the largest there is
TOP_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory. Call it at the start of a process that trains or runs networks on the CPU.

    The process then stays at its largest size. Does nothing where the C library is not glibc.

    Returns:
        True where glibc took all settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER_TRIM_BYTES), (M_TOP_PAD, TOP_PAD_BYTES), (M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
