"""The kernels of `kernels.cu` without a GPU: compiled by the host's compiler, started as `CudaKernels` starts them on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.inference.cuda.kernels import KERNELS, SOURCE, CudaKernels

COMPILER = shutil.which("c++")
OPTIONS = "-std=c++20 -O1 -shared -fPIC -pthread -w -ffp-contract=off".split()
TRAPS = "-fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error".split()
"""An access that a GPU would refuse ends the process."""
TOGETHER = {"chained_pools", "greedy_nms", "instance_masks"}
"""Those whose threads wait for each other."""


class HostKernels(CudaKernels):
    """Everything of `CudaKernels` but its compiler and its launches.

    Args:
        dtype: float16 or bfloat16.
        folder: for what is compiled.
    Raises:
        subprocess.CalledProcessError: it does not compile.
    """

    def __init__(self, dtype: torch.dtype, folder: Path) -> None:
        self._dtype, self._device = dtype, torch.device("cpu")
        header = Path(__file__).with_suffix(".h")
        entries = "".join(f"ENTRY({name}, {str(name in TOGETHER).lower()})\n" for name in KERNELS)
        source, library = folder / f"{dtype}.cpp", folder / f"{dtype}.so"
        source.write_text(f'#include "{header}"\n#include "{SOURCE}"\n{entries}', encoding="ascii")
        options = [*OPTIONS, *TRAPS, *(["-DBF16"] if dtype == torch.bfloat16 else [])]
        subprocess.run([str(COMPILER), *options, "-o", str(library), str(source)], check=True)
        self._library = ctypes.CDLL(str(library))

    def fastest(self, ways: Sequence[Callable[[], object]]) -> int:  # noqa: ARG002  (whichever it is, its result is looked at)
        return 0

    def _start(self, kernel: str, blocks: int | tuple[int, ...], threads: int, *arguments: Any) -> None:
        grid = (*((blocks,) if isinstance(blocks, int) else blocks), 1, 1)[:3]
        values = [_value(one) for one in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        getattr(self._library, f"run_{kernel}")(*grid, threads, pointers)


def _value(argument: Any) -> Any:
    """Of the type that cuda-core would pass."""
    if isinstance(argument, np.int32):
        return ctypes.c_int(int(argument))
    if isinstance(argument, np.float32):
        return ctypes.c_float(float(argument))
    return ctypes.c_void_p(argument.data_ptr() if isinstance(argument, Tensor) else argument)
