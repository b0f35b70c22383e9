"""A decoder process that misbehaves on request: what codec bugs would do. Started by test_decoder_pool.py."""

import ctypes
import os
import time

from pipeline.images.decoder_worker import main
from pipeline.images.load import load_image


def load(data, limits, size):
    """Do what the first bytes say; anything else is decoded."""
    match data[:6]:
        case b"CRASH!":
            ctypes.string_at(0)
        case b"ABORT!":
            os.abort()
        case b"HANG!!":
            time.sleep(600)
        case b"SPIN!!":
            while True:
                pass
        case b"BUG!!!":
            raise RuntimeError("unexpected failure")
        case b"EXIT!!":
            os._exit(3)
        case b"MEMORY":
            return bytearray(8 * 2**30)
    return load_image(data, limits, size)


if __name__ == "__main__":
    main(load)
