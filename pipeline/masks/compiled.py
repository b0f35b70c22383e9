"""Functions compiled to machine code by Numba: plain loops at the speed of C, during which other Python threads run.

The machine code is kept on disk, so that a process compiles only what no process before it did: beside the source, in
`NUMBA_CACHE_DIR`, or in `~/.cache/numba`. Where nothing can be written, each process compiles at its start.
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
    compile_it = functools.partial(numba.njit, nogil=True, error_model="numpy")
    try:
        return cast(_Function, compile_it(cache=True)(function))
    except RuntimeError as error:  # no folder to keep it in
        _log.warning(
            "%s; it is compiled anew at each start (about 10 s). Set NUMBA_CACHE_DIR to a folder that can be written.", error
        )
        return cast(_Function, compile_it()(function))
