"""A disk that is full, without mounting one."""

import resource
from contextlib import contextmanager


@contextmanager
def files_no_larger_than(size):
    """Within: the kernel takes so many bytes of a file, writes the rest of a call not at all, and refuses the next call (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
