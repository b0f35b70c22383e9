"""`--batch-size auto`: the largest power of two whose step fits into memory, found by making real steps.

1, 2, 4, ... photos ─▶ one training step each ─▶ its peak ─▶ twice as many would still leave a margin? ─▶ go on, or stay

On a GPU every size is tried up to the first that does not fit. On a CPU, where a step takes seconds, sizes up to 4 are; what more need
follows from these: a step's memory grows with its photos.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, OPTIM_WRAPPERS
from mmengine.dataset import pseudo_collate
from torch import nn

MARGIN = 0.85
"""Share of the free memory that a step may take: averaged weights, and photos with more objects than those that were tried, take some."""
MAX_ON_CARD, MAX_ON_CPU = 64, 16
"""Photos; a step on a CPU takes as much longer as it has photos, and batch norms need no more."""
TRIED_ON_CPU = 4


def largest_batch(peak_bytes: Callable[[int], int], free_bytes: int, limit: int, tried: int) -> int:
    """The largest power of two up to `limit` whose step needs less than `MARGIN` of the free memory.

    Args:
        peak_bytes: makes a step with so many photos and says how much memory it took; torch.OutOfMemoryError where it does not fit.
        free_bytes: memory that there is.
        limit: photos.
        tried: sizes up to this one are tried; beyond, the memory for each photo is taken to stay as it was.
    Raises:
        ValueError: not even one photo fits.
    """
    batch, before, each = 0, 0, 0
    while max(1, 2 * batch) <= limit:
        larger = max(1, 2 * batch)
        if before + (larger - batch) * each > MARGIN * free_bytes:
            break
        if larger > tried:
            batch, before = larger, before + (larger - batch) * each
            continue
        try:
            peak = peak_bytes(larger)
        except torch.OutOfMemoryError:
            break
        if peak > MARGIN * free_bytes:
            break
        batch, before, each = larger, peak, max(peak - before, 0) // (larger - batch) if batch else 0
    if not batch:
        raise ValueError(
            "--batch-size auto: a step with a single photo does not fit into memory. Give a smaller --image-size or --model."
        )
    return batch


def choose_batch_size(network: nn.Module, dataset: dict[str, Any], optim_wrapper: dict[str, Any]) -> tuple[int, str]:
    """Try steps with real samples.

    Args:
        network: as it will train, on the device where it will; the steps change it.
        dataset: mmengine's configuration of the training samples.
        optim_wrapper: of the optimizer wrapper, without optimizer.
    Returns:
        The batch size, and a phrase that says how it was found.
    """
    device = next(network.parameters()).device
    step = _Step(network, DATASETS.build(dataset), optim_wrapper)
    on_card = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_card else available_bytes()
    limit, tried = (MAX_ON_CARD, MAX_ON_CARD) if on_card else (MAX_ON_CPU, TRIED_ON_CPU)
    chosen = largest_batch(step.peak_on_card if on_card else step.peak_on_cpu, free, limit, tried)
    return (
        chosen,
        f"the largest power of two up to {limit} whose step fits into {MARGIN:.0%} of {free / 2**30:.1f} GiB of free memory",
    )


class _Step:
    """Training steps with real samples."""

    def __init__(self, network: Any, samples: Any, optim_wrapper: dict[str, Any]) -> None:
        self._network, self._samples = network.train(), samples
        optimizer = torch.optim.AdamW((part for part in network.parameters() if part.requires_grad), lr=1e-6)
        self._wrapper = OPTIM_WRAPPERS.build(optim_wrapper | {"optimizer": optimizer})
        self._before = 0 if torch.cuda.is_available() else resident_bytes("VmRSS")

    def peak_on_card(self, photos: int) -> int:
        """Bytes that PyTorch holds of the GPU's memory after a step."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            self._make(photos)
            return torch.cuda.max_memory_reserved()
        finally:
            self._network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def peak_on_cpu(self, photos: int) -> int:
        """Bytes by which this process has grown since before the first step."""
        Path("/proc/self/clear_refs").write_text("5")  # forget what was held before
        self._make(photos)
        return resident_bytes("VmHWM") - self._before

    def _make(self, photos: int) -> None:
        batch = pseudo_collate([self._samples[number % len(self._samples), number] for number in range(photos)])
        self._network.train_step(batch, optim_wrapper=self._wrapper)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process can still get: of the machine, or of its container where that is less.

    Raises:
        ValueError: the system is not Linux.
    """
    if not (proc / "meminfo").is_file():
        raise ValueError("--batch-size auto needs Linux or a GPU to know how much memory there is. Give a number of photos.")
    free = _kilobytes(proc / "meminfo", "MemAvailable") * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()).isdecimal():
        free = min(free, int(allowed) - int(used.read_text()))
    return max(free, 0)


def resident_bytes(field: str) -> int:
    """Memory of this process: VmRSS, what it holds, or VmHWM, the peak."""
    return _kilobytes(Path("/proc/self/status"), field) * 1024


def _kilobytes(table: Path, field: str) -> int:
    (line,) = (line for line in table.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
