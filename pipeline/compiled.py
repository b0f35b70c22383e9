"""Compiles functions with Numba: loops as fast as in C, which run without the GIL.

The machine code is cached on disk: beside the source, in `NUMBA_CACHE_DIR`, or in `~/.cache/numba`. If none of them is writable, each
process compiles at its start. It does so once if a file of the cache is damaged, as after a loss of power. Machine code contains that
of the functions it calls, and imported constants; so it is compiled anew when one of these has changed, in whatever module.

The compiler leaves 250 MB in the process that runs it. `compile_in_child` lets a child process do it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from filelock import FileLock
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., object])

_functions: list[Any] = []
"""Numba's dispatchers of all functions that are cached."""


def compiled(function: _Function) -> _Function:
    """Compile `function` at its first call. Division by zero gives inf or nan, as in numpy."""
    return _compiled(function, fastmath=False)


def compiled_fused(function: _Function) -> _Function:
    """As `compiled`; a product and the sum that it is added to may be one instruction, which is faster and rounds once instead of twice."""
    return _compiled(function, fastmath={"contract"})


def compile_in_child(package: str, call: str) -> None:
    """Compile the functions of a package in a child process, if the cache lacks one. Processes that start together compile once.

    Without a cache, or if the child fails, nothing happens: functions are compiled when they are first called.

    Args:
        package: such as `pipeline.masks`; its modules are imported.
        call: Python code that calls all its functions.
    """
    if is_cached(package):
        return
    with FileLock(Path(_functions_of(package)[0].stats.cache_path, "compiling.lock")):
        if not is_cached(package):
            subprocess.run([sys.executable, "-c", call], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)


def is_cached(package: str) -> bool:
    """Whether the cache has the machine code of all functions in the imported modules of a package; also if there can be no cache."""
    return all(function._cache.has_code for function in _functions_of(package))


def _functions_of(package: str) -> list[Any]:
    return [function for function in _functions if function.__module__.startswith(f"{package}.")]


def _compiled(function: _Function, fastmath: bool | set[str]) -> _Function:
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    try:
        dispatcher._cache = _Cache(function)  # as `cache=True`, with Numba's own class
        _functions.append(dispatcher)
    except RuntimeError as error:  # no writable folder for the cache
        _log.warning("%s; it is compiled at each start (20 to 30 s of a core). Set NUMBA_CACHE_DIR to a writable folder.", error)
    return cast(_Function, dispatcher)


@functools.cache
def _source_stamp(function: Any) -> str:
    """Hash of all that the machine code is made of: the function's source file, the compiled functions that this imports, and numbers."""
    parts = [Path(function.__code__.co_filename).read_text(encoding="utf-8")]
    for name, value in sorted(function.__globals__.items()):
        if isinstance(value, Dispatcher) and value.__module__ != function.__module__:
            parts.append(_source_stamp(value.py_func))
        elif isinstance(value, (int, float, np.number)):
            parts.append(f"{name} = {value!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_NumbaCache: Any = FunctionCache  # it has no types


class _Cache(_NumbaCache):
    """Numba's cache of one function. Files that cannot be read or written cost time; Numba's own would end the process.

    Numba's own also looks only at the function's own source file.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = _source_stamp(function)

    @property
    def has_code(self) -> bool:
        """Whether a file has machine code of this version of the function."""
        try:
            return bool(self._cache_file._load_index())
        except Exception:  # of almost any type, from a damaged pickle
            return False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for these types; None if it is not cached."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # of almost any type, from a damaged pickle
            _log.warning("the cache of %s is damaged (%r), so it is compiled anew", self._py_func.__qualname__, error)
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled function for these types."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _log.warning("the cache of %s is not written (%s), so each process compiles it", self._py_func.__qualname__, error)
