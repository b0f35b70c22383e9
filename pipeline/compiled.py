"""Compiles functions with Numba: loops as fast as in C, which run without the GIL.

The machine code is cached on disk: beside the source, in `NUMBA_CACHE_DIR`, or in `~/.cache/numba`. If none of them is writable, each
process compiles at its start.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar, cast

import numba

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile `function` at its first call. Division by zero gives inf or nan, as in numpy."""
    return _compiled(function, fastmath=False)


def compiled_fused(function: _Function) -> _Function:
    """As `compiled`; a product and the sum that it is added to may be one instruction, which is faster and rounds once instead of twice."""
    return _compiled(function, fastmath={"contract"})


def _compiled(function: _Function, **options: object) -> _Function:
    compile_it = functools.partial(numba.njit, nogil=True, error_model="numpy", **options)
    try:
        return cast(_Function, compile_it(cache=True)(function))
    except RuntimeError as error:  # no writable folder for the cache
        _log.warning("%s; it is compiled at each start (20 to 30 s of a core). Set NUMBA_CACHE_DIR to a writable folder.", error)
        return cast(_Function, compile_it()(function))
