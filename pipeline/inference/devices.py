"""Chooses the engine, device and threads for this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigurationError, EngineUnavailable
from pipeline.inference.engine import EngineOptions

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_kind(options: EngineOptions) -> str:
    """The engine: `options.kind` unless it is `auto`; then `torch` if CUDA is asked for or available, else `openvino`."""
    wants_cuda = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    if options.kind != "auto":
        return options.kind
    return "torch" if wants_cuda else "openvino"


def choose_torch_device(name: str) -> torch.device:
    """The torch device with this name; `auto` is the first GPU, or the CPU if there is none.

    Raises:
        EngineUnavailable: the GPU is not available.
        ConfigurationError: not a valid name.
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
    if index >= torch.cuda.device_count() or not torch.cuda.is_available():  # is_available() is False if the driver is too old
        raise EngineUnavailable(f"detector.device: {name!r} is not available: {_why_no_gpu()}")
    return torch.device("cuda", index)


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return "this PyTorch is a CPU build. Install a CUDA build of the same version, or set `cpu`."
    return (
        f"PyTorch sees {torch.cuda.device_count()} GPUs. Either this process was given too few (num_gpus, CUDA_VISIBLE_DEVICES), or the "
        f"NVIDIA driver is too old for CUDA {torch.version.cuda}, for which this PyTorch is built: compare with `nvidia-smi`."
    )


def owned_cores() -> int:
    """Cores this process may use: OMP_NUM_THREADS, which Ray sets to a replica's num_cpus; else by affinity and cgroup quota."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    return min(len(os.sched_getaffinity(0)), _cgroup_cores())


def _cgroup_cores() -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return (os.cpu_count() or 1) if quota == "max" else max(1, math.floor(int(quota) / int(period)))


@contextmanager
def switched(*switches: tuple[Any, str, bool]) -> Iterator[None]:
    """Within: set attributes of PyTorch's backends, (backend, name, value). They are global, so they are restored afterwards."""
    before = [getattr(backend, name) for backend, name, _ in switches]
    try:
        for backend, name, value in switches:
            setattr(backend, name, value)
        yield
    finally:
        for (backend, name, _), was in zip(switches, before, strict=True):
            setattr(backend, name, was)


def cpu_computes_bf16() -> bool:
    """Whether the CPU has bf16 instructions (AVX-512 BF16 or AMX); without them bf16 is slower than fp32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def cpu_has_matrix_unit() -> bool:
    """Whether the CPU has AMX for bf16, with 16 times the multiplications per cycle of its vector units."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
