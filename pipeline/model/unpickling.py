"""Reads the pickle in a `.pth` file without executing code from it.

Unpickling can execute any code. torch's `weights_only` unpickler only builds tensors and the types of an allow-list; the list here adds
the few harmless types that mmengine writes into its checkpoints.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import CheckpointError
from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmengine.logging.history_buffer import HistoryBuffer  # noqa: E402  (after the stand-in)


def unpickle_tensors(path: Path) -> dict[str, Any]:
    """Read the dict in a `.pth` file: tensors, and what mmengine saves beside them.

    Raises:
        CheckpointError: the file is missing, damaged, not a dict, or asks for a type that is not allowed.
    """
    try:
        with harmless_types_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if kind := other_kind(path):
            raise CheckpointError(f"{path.name}: not a readable PyTorch checkpoint ({kind}).") from error
        refused = re.search(r"unsupported [^\n]*?(?= was not| whose|$)", str(error), re.IGNORECASE | re.MULTILINE)
        reason = refused[0] if refused else "its pickle is damaged"
        raise CheckpointError(f"{path.name}: refused, a checkpoint may only hold tensors and log history: {reason}") from error
    except Exception as error:  # of any type, where the bytes are no pickle
        reason = other_kind(path) or str(error) or type(error).__name__
        raise CheckpointError(f"{path.name}: not a readable PyTorch checkpoint ({reason}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: expected a dict of tensors, found {type(content).__name__}.")
    return content


def other_kind(path: Path) -> str:
    """What a file is that holds no weights but text, such as an error page, or nothing; empty for all else."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return ""
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; `git lfs pull` gets the file itself"
    if head.isascii() and (text := " ".join(head.decode().split())).isprintable():
        return f"it is text: {text[:60]!r}" if text else "it is empty"
    return ""


def harmless_types_only() -> torch.serialization.safe_globals:
    """Within: torch's restricted unpickler also accepts mmengine's log history, and numpy's arrays and scalars."""
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    old_names: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), (reconstruct, "numpy.core.multiarray._reconstruct")]
    methods: list[Any] = [(_history_method, "__builtin__.getattr"), (_history_method, "builtins.getattr")]
    types: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *dtypes, scalar, reconstruct]
    return torch.serialization.safe_globals([*types, *old_names, *methods])


def _history_method(owner: Any, name: str) -> Any:
    """Restricted replacement for the `getattr` in a pickled log history; `getattr` itself would allow any code."""
    if owner is HistoryBuffer and name in ("min", "max", "current", "mean"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"Unsupported attribute {name}")
