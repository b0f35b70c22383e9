"""Choosing engine, device, precision and threads on the machine at hand, and saying so in the log."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigurationError, EngineUnavailable
from pipeline.inference.engine import EngineOptions

log = logging.getLogger(__name__)
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_kind(options: EngineOptions) -> str:
    """`torch` where CUDA is wanted or, with everything on auto, present; else `openvino`."""
    wants_cuda = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    if options.kind != "auto":
        return options.kind
    return "torch" if wants_cuda else "openvino"


def choose_torch_device(name: str) -> torch.device:
    """The device that was asked for; `auto` is the first CUDA card, or the CPU.

    Raises:
        EngineUnavailable: CUDA is asked for and not there.
        ConfigurationError: no such kind of device.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"detector.device: {name!r} is not auto, cpu, cuda or cuda:N.") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigurationError(f"detector.device: {name!r} is not auto, cpu, cuda or cuda:N.")
    index = device.index or 0
    if index >= torch.cuda.device_count() or not torch.cuda.is_available():  # the former asks the driver, which may be too old
        raise EngineUnavailable(f"detector.device: {name!r} is asked for, but {_why_no_card()}")
    return torch.device("cuda", index)


def _why_no_card() -> str:
    if torch.version.cuda is None:
        return "this PyTorch is a CPU build. Install a CUDA build of the same version, or set `cpu`."
    return (
        f"PyTorch sees {torch.cuda.device_count()} cards. Too few were given to this process (num_gpus, CUDA_VISIBLE_DEVICES), or the "
        f"NVIDIA driver is too old for CUDA {torch.version.cuda}, which this PyTorch is built for: compare with `nvidia-smi`."
    )


def owned_cores() -> int:
    """Cores this process may use: Ray gives a replica OMP_NUM_THREADS = its num_cpus; else affinity and cgroup quota."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return min(len(os.sched_getaffinity(0)), _cgroup_cores())


def _cgroup_cores() -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return (os.cpu_count() or 1) if quota == "max" else max(1, math.floor(int(quota) / int(period)))


@contextmanager
def switched(*switches: tuple[Any, str, bool]) -> Iterator[None]:
    """Within: PyTorch's backends have these attributes. They belong to the process, so they are put back."""
    before = [getattr(backend, name) for backend, name, _ in switches]
    try:
        for backend, name, value in switches:
            setattr(backend, name, value)
        yield
    finally:
        for (backend, name, _), was in zip(switches, before, strict=True):
            setattr(backend, name, was)


def cpu_computes_bf16() -> bool:
    """Whether the CPU has bf16 instructions (AVX-512 BF16 or AMX); without them torch's bf16 is slower than fp32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def cpu_has_matrix_unit() -> bool:
    """Whether the CPU has AMX for bf16: 16 times the multiplications of its vectors, on which everything else still runs."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
