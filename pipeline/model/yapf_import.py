"""Imports yapf, which mmengine imports, without its cache.

yapf keeps its parsed grammar in the user's cache folder. It makes the file visible before the content is written (yapf 0.43,
`Grammar.dump`): of processes that start at once, as replicas do, some read an empty file and end with `EOFError: Ran out of input`;
after a kill at that moment, every later start does. Without the cache an import takes some 0.03 s longer.
"""

from __future__ import annotations

import importlib
import os


def import_yapf() -> None:
    """Import yapf without reading or writing its cache. Call it before mmengine is imported; calling it again changes nothing."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = os.devnull  # not a folder: yapf goes on without one
    try:
        importlib.import_module("yapf")
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
