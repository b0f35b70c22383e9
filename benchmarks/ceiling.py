"""Measures this machine's limits (matrix products and copies, by PyTorch), and counts the operations of a network.

The peak is the best of several sizes and repeats, not the mean: other load on the machine must not lower it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.rtmdet import RawNetwork
from pipeline.model.spec import ModelSpec, build_network

SIDES = (1024, 2048, 4096)
"""Sides of the square matrices; small ones stay in the cache, large ones give both cores enough to do."""
COPY_BYTES = 256 * 2**20
"""Far beyond the level-2 caches (4 MB here); a large shared level-3 cache may hold it all the same."""


@dataclass(slots=True)
class Ceiling:
    """Best of all measurements so far.

    Args:
        device: `cpu` or `cuda`.
        sides: sides of the square matrices.
        flop_per_s: operations a second (a multiply-add is two) by precision; None where PyTorch has no such product here.
        copy_bytes_per_s: bytes read and written a second by a plain copy.
    """

    device: str = "cpu"
    sides: tuple[int, ...] = SIDES
    flop_per_s: dict[str, float | None] = field(default_factory=dict)
    copy_bytes_per_s: float = 0.0

    def measure(self, repeats: int = 5) -> None:
        """Measure again and keep the best. Call it in every round, so that it sees the machine as the contestants do."""
        for precision in _PRODUCTS if self.device == "cpu" else _PRODUCTS_ON_GPU:
            before, now = self.flop_per_s.get(precision), self._peak(precision, repeats)
            self.flop_per_s[precision] = max((rate for rate in (before, now) if rate is not None), default=None)
        source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = self._best_s(lambda: target.copy_(source), repeats)
        self.copy_bytes_per_s = max(self.copy_bytes_per_s, 2 * COPY_BYTES / seconds)

    def peak(self, precision: str) -> float:
        """FLOP/s of a precision that was measured.

        Raises:
            LookupError: it could not be measured here.
        """
        rate = self.flop_per_s.get(precision)
        if rate is None:
            raise LookupError(f"no matrix peak was measured for {precision}")
        return rate

    def as_lines(self) -> list[str]:
        """For people."""
        peaks = [f"{name} {rate / 1e9:,.0f} G" for name, rate in self.flop_per_s.items() if rate is not None]
        return [
            f"ceiling ({self.device}): matrix product {', '.join(peaks)} operations/s; "
            f"copy {self.copy_bytes_per_s / 1e9:.1f} GB/s read and written"
        ]

    def _peak(self, precision: str, repeats: int) -> float | None:
        sides = self.sides[:-1] if precision == "fp32" and self.device == "cpu" else self.sides
        try:
            return max(2 * side**3 / self._best_s(_PRODUCTS_ON_GPU[precision](side, self.device), repeats) for side in sides)
        except RuntimeError:
            return None

    def _best_s(self, run: Callable[[], object], repeats: int) -> float:
        run()
        return min(self._timed_s(run) for _ in range(repeats))

    def _timed_s(self, run: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def _float_product(dtype: torch.dtype) -> Callable[[int, str], Callable[[], object]]:
    def prepare(side: int, device: str) -> Callable[[], object]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return lambda: a @ b

    return prepare


def _int8_product(side: int, device: str) -> Callable[[], object]:
    a, b = (torch.randint(-100, 100, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    return lambda: torch._int_mm(a, b)


_PRODUCTS = {"bf16": _float_product(torch.bfloat16), "fp32": _float_product(torch.float32), "int8": _int8_product}
_PRODUCTS_ON_GPU = _PRODUCTS | {"fp16": _float_product(torch.float16)}
"""A CPU's fp16 is left out: nothing here computes in it."""


def count_flops(spec: ModelSpec) -> tuple[float, float]:
    """Operations of one image, 2 for a multiply-add: (of the network here, of mmdet's own).

    Counted by PyTorch without computing anything, on the network as it runs here (batch norms folded, the shared branch once, the kernel
    branch left to the post-processing): counting work that was saved would flatter the share of the peak.
    """
    size = spec.input_size
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        theirs: Any = build_network(spec).to("meta")
        with FlopCounterMode(display=False) as mmdet:
            theirs.bbox_head(theirs.extract_feat(torch.zeros(1, 3, size, size, device="meta")))
        ours = RawNetwork(build_network(spec), size).to("meta")
        with FlopCounterMode(display=False) as here:
            ours(torch.zeros(1, size, size, 3, dtype=torch.uint8, device="meta"))
    return float(here.get_total_flops()), float(mmdet.get_total_flops())
