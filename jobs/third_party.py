"""Everything needed around mmdet, mmcv and mmengine: import this module before any of them.

It puts the stand-in for mmcv's compiled operators in place, and quiets the warnings that mmdet 3.3.0 gives under torch 2.13,
which a user of the jobs can do nothing about.
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
    r"`torch\.cuda\.amp\.GradScaler",  # mmengine's AmpOptimWrapper, which fp16 takes on a card
    r"Detected call of `scheduler\.step\(\)` before",  # its scaler skips the first steps while they overflow
    "Named tensors and all their associated APIs",
    "'pin_memory' argument is set as true",
)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Everything not listed above still shows."""
    with warnings.catch_warnings():
        for message in KNOWN:
            warnings.filterwarnings("ignore", message=message)
        yield
