"""Makes `import mmcv._ext` work without mmcv's compiled operators.

Only the full `mmcv` has the compiled operators, and it must be built from source. `mmcv-lite` lacks them, but `mmdet.models` imports them.
RTMDet-Ins needs only one operator, `nms`, and only in mmdet's own test path (the engines of this project have their own NMS).

    compiled mmcv._ext installed?  ── yes ──▶ use it
                                   ── no  ──▶ sys.modules["mmcv._ext"] = stand-in: nms works, all others raise when called
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.model.yapf_import import import_yapf

EXTENSION = "mmcv._ext"
ROWS = 256
"""Boxes whose IoU with all others is computed at a time."""
logger = logging.getLogger(__name__)


class CompiledOpMissing(NotImplementedError):
    """An operator of mmcv's compiled extension was called, but only the stand-in is installed."""


def ensure_mmcv_ops() -> bool:
    """Make `mmcv._ext` importable. Call it before `mmdet.models` is imported; calling it again changes nothing.

    Returns:
        True if the compiled operators are used, False if the stand-in is.
    """
    with warnings.catch_warnings():
        # torch.distributed, mmcv and mmengine print deprecation warnings of their own at import.
        warnings.simplefilter("ignore")
        import_yapf()
        compiled = _install_ops()
        importlib.import_module("mmdet.models")
        importlib.import_module("mmengine.runner")
    return compiled


def _install_ops() -> bool:
    try:
        extension = importlib.import_module(EXTENSION)
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        logger.warning("mmcv's compiled operators cannot be loaded (%s): using the stand-in. Rebuild mmcv for this torch.", error)
    else:
        return not isinstance(extension, StandInOps)
    sys.modules[EXTENSION] = StandInOps()
    return False


class StandInOps(ModuleType):
    """Stand-in for the module `mmcv._ext`: `nms` in torch; all other operators raise CompiledOpMissing."""

    def __init__(self) -> None:
        super().__init__(EXTENSION, doc="Stand-in for mmcv's compiled operators, see pipeline/model/compiled_ops.py.")
        self.__spec__ = ModuleSpec(EXTENSION, loader=None)
        self.nms = greedy_nms

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__"):
            raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")
        return _refusing_op(name)


def greedy_nms(boxes_xyxy: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int = 0) -> torch.Tensor:
    """Greedy NMS: keep the best box, drop all boxes that overlap it by more than the threshold, repeat with the rest.

    All overlaps are computed on the boxes' device, the selection runs on the host; so a GPU is synchronized once and not for every kept
    box. The overlaps take N * N bytes: 9 MB for 3,000 boxes, 100 MB for 10,000, above which mmcv runs class by class.

    Args:
        boxes_xyxy: (N, 4) float, x1 y1 x2 y2, any unit.
        scores: (N,) float.
        iou_threshold: a box with a larger IoU than this with a kept, better box is dropped.
        offset: 0, or 1 if a box from x1 to x2 counts x2 - x1 + 1 pixels.
    Returns:
        (K,) int64 indices of the kept boxes, best score first.
    Source: mmcv/ops/csrc/pytorch/cpu/nms.cpp (same order, same strict comparison).
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = _overlaps(boxes_xyxy[order], iou_threshold, offset)
    kept = keep_greedily(overlaps.cpu().numpy())
    return order[torch.from_numpy(kept).to(order.device)]


def keep_greedily(overlaps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the boxes that no better kept box overlaps.

    Args:
        overlaps: (N, N) bool, best box first; row i marks the later boxes to drop if box i is kept.
    Returns:
        (K,) int64, ascending.
    """
    dropped = np.zeros(len(overlaps), bool)
    kept = []
    for index, row in enumerate(overlaps):
        if not dropped[index]:
            kept.append(index)
            dropped |= row
    return np.array(kept, np.int64)


def _overlaps(boxes: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    """(N, N) bool on the boxes' device, True where the IoU is above the threshold; left of a block of rows stays False."""
    overlaps = torch.zeros(len(boxes), len(boxes), dtype=torch.bool, device=boxes.device)
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    for start in range(0, len(boxes), ROWS):
        rows, later = slice(start, start + ROWS), slice(start, None)
        width = torch.minimum(x2[rows, None], x2[later]) - torch.maximum(x1[rows, None], x1[later]) + offset
        height = torch.minimum(y2[rows, None], y2[later]) - torch.maximum(y1[rows, None], y1[later]) + offset
        shared = width.clamp(min=0) * height.clamp(min=0)
        union = areas[rows, None] + areas[later] - shared
        overlaps[rows, later] = ~(shared <= iou_threshold * union)  # not `>`: a box that is not a number drops out
    return overlaps


def _refusing_op(name: str) -> Callable[..., object]:
    def refuse(*_args: object, **_kwargs: object) -> object:
        raise CompiledOpMissing(
            f"mmcv's compiled operator {name!r} is not available: this installation has mmcv-lite. "
            "RTMDet-Ins does not need it; for models that do, install the full mmcv 2.1 (`pip install mmcv==2.1.0`)."
        )

    refuse.__name__ = name
    return refuse
