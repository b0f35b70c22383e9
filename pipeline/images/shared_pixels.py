"""Shared memory through which a decoder process returns its pixels, used again for each image.

The size is sealed, so that an attacker who takes over a decoder cannot shrink the memory while its owner reads it (SIGBUS). The kernel
allocates a page when it is first written.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from io import FileIO

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decoder_options import MAX_SIDE

_BYTES = MAX_SIDE * MAX_SIDE * 3


def make_shared_pixels() -> FileIO:
    """Create the memory, as an unnamed file whose descriptor is passed to the decoder process."""
    file = FileIO(os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")
    file.truncate(_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return file


def map_shared_pixels(descriptor: int) -> NDArray[np.uint8]:
    """Map the file of `make_shared_pixels`: (bytes,) uint8. The mapping lives as long as the array."""
    return np.frombuffer(mmap.mmap(descriptor, _BYTES), np.uint8)
