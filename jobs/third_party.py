"""Workarounds for mmdet, mmcv and mmengine; import this module before them.

It installs the stand-in for mmcv's compiled operators, and ignores warnings of mmdet 3.3.0 under torch 2.13
that users cannot act on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

KNOWN = (
    "torch.meshgrid: in an upcoming release",  # mmdet's grid of points
    r"`torch\.cuda\.amp\.autocast",  # mmdet's channel attention and CSP blocks
    r"`torch\.cuda\.amp\.GradScaler",  # mmengine's AmpOptimWrapper, which fp16 takes on a GPU
    r"Detected call of `scheduler\.step\(\)` before",  # its scaler skips the first steps while they overflow
    "Named tensors and all their associated APIs",
    "'pin_memory' argument is set as true",
)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Within: ignore the warnings in `KNOWN`; all others are shown."""
    with warnings.catch_warnings():
        for message in KNOWN:
            warnings.filterwarnings("ignore", message=message)
        yield
