"""Weights in, weights out, and never a line of code from a file.

    released or trained .pth ─▶ restricted unpickling (short allow-list) ─┐
    our .safetensors         ─▶ raw tensors + JSON header ────────────────┴▶ Checkpoint(spec, state_dict)

A `.pth` is a pickle, and a pickle can run anything. It is read with torch's `weights_only` unpickler, which builds tensors
and the few harmless types that mmengine adds; whatever else it asks for is refused. mmengine also stores its
configuration as Python source (`meta["cfg"]`): that is never executed. The network is known from the file's own
`model_spec` (checkpoints of `jobs.finetune`), or recognised by the shapes of its tensors (OpenMMLab's releases).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import CheckpointError
from pipeline.model.spec import OFFICIAL_NAMES, ModelSpec, build_network, check_types, nano_spec, official_spec

FORMAT = "rtmdet-ins-serve/1"
SPEC_KEYS = ("name", "classes", "input_size", "config")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with its weights.

    Attributes:
        spec: name, classes, input size, layers.
        state_dict: tensors by mmdet's names; float ones are float32.
    """

    spec: ModelSpec
    state_dict: dict[str, torch.Tensor]

    def network(self) -> Any:
        """mmdet's RTMDet with these weights, in eval mode.

        Raises: CheckpointError where names or shapes do not fit the network.
        """
        network = build_network(self.spec)
        try:
            missing, unexpected = network.load_state_dict(self.state_dict, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{self.spec.name}: weights do not fit the network: {error}") from error
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise CheckpointError(
                f"{self.spec.name}: weights do not fit the network: {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}."
            )
        return network


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read an mmengine `.pth` or one of our `.safetensors` files.

    Raises:
        CheckpointError: missing, damaged, hostile, or not an RTMDet-Ins model.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    return _from_mmengine(_unpickle_tensors(path), path)


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Only the tensors of a file, whatever network they belong to: to start a training from."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    return _network_tensors(_unpickle_tensors(path), path)


def save_safetensors(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write weights in half precision, with name, classes, input size and configuration as JSON in the header.

    Batch-norm statistics and every other float become float16; tensors that float16 cannot hold are refused.
    """
    spec = checkpoint.spec
    tensors = {}
    for name, value in checkpoint.state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        half = value.to(torch.float16) if value.is_floating_point() else value
        if not torch.isfinite(half).all():
            raise CheckpointError(f"{spec.name}: {name} has values that half precision cannot hold.")
        tensors[name] = half.contiguous()
    description = {"name": spec.name, "classes": list(spec.classes), "input_size": spec.input_size, "config": spec.config}
    # Not save_file: its files are for nobody but their owner, and a service often is another user. As with it, a reader of the file
    # that was there keeps that one, and a full disk leaves it.
    draft = Path(f"{path}.{os.getpid()}.part")
    try:
        draft.write_bytes(save(tensors, metadata={"format": FORMAT, "model_spec": json.dumps(description)}))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _load_safetensors(path: Path) -> Checkpoint:
    tensors, metadata = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path.name}: its header has format {metadata.get('format')!r}, expected {FORMAT!r}.")
    try:
        description = json.loads(metadata["model_spec"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path.name}: its header describes no model.") from error
    return Checkpoint(_spec_from_description(description, path), tensors)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: _as_fp32(file.get_tensor(name)) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: not a readable safetensors file ({error}).") from error


def _unpickle_tensors(path: Path) -> dict[str, Any]:
    try:
        with harmless_types_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that we refuse or read anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"unsupported [^\n]*?(?= was not| whose|$)", str(error), re.IGNORECASE | re.MULTILINE)
        reason = refused[0] if refused else "its pickle is damaged"
        raise CheckpointError(f"{path.name}: refused, a checkpoint may hold tensors and log history only: {reason}") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name}: not a readable PyTorch checkpoint ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: expected a dict of tensors, found {type(content).__name__}.")
    return content


def harmless_types_only() -> torch.serialization.safe_globals:
    """Inside this context torch's restricted unpickler also accepts what mmengine's log history adds to a checkpoint, and
    numpy's way to pickle arrays and scalars.
    """
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    old_names: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), (reconstruct, "numpy.core.multiarray._reconstruct")]
    methods: list[Any] = [(_history_method, "__builtin__.getattr"), (_history_method, "builtins.getattr")]
    types: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *dtypes, scalar, reconstruct]
    return torch.serialization.safe_globals([*types, *old_names, *methods])


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for the `getattr` that a log history is pickled with: `getattr` itself would open every door."""
    if owner is HistoryBuffer and name in ("min", "max", "current", "mean"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"Unsupported attribute {name}")


def _from_mmengine(content: dict[str, Any], path: Path) -> Checkpoint:
    tensors = _network_tensors(content, path)
    meta = content.get("meta") or {}
    if "model_spec" in meta:
        return Checkpoint(_spec_from_description(meta["model_spec"], path), tensors)
    spec = _recognise(tensors, path)
    classes = _classes_in(meta)
    return Checkpoint(spec.with_classes(classes) if classes else spec, tensors)


def _network_tensors(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights to use. Where a run kept an average (EMA), mmengine saves the average under the plain names and the
    raw weights in `ema_state_dict`; mmdet 2 kept copies as `ema_*` buffers. Both extra copies are left out.
    """
    state = content.get("state_dict", content)
    tensors = {
        name.removeprefix("module."): _as_fp32(value)
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and not name.startswith("ema_") and not name.startswith("data_preprocessor.")
    }
    if not tensors:
        raise CheckpointError(f"{path.name}: holds no tensors.")
    return tensors


def _recognise(tensors: dict[str, torch.Tensor], path: Path) -> ModelSpec:
    """Find the RTMDet-Ins size whose tensors have these names and shapes, class channels aside."""
    shapes = _shapes(tensors)
    class_weight = tensors.get("bbox_head.rtm_cls.0.weight")
    if class_weight is not None:
        classes = tuple(f"class {number}" for number in range(class_weight.shape[0]))
        for spec in [*map(official_spec, OFFICIAL_NAMES), nano_spec()]:
            if _shapes(build_network(spec).state_dict()) == shapes:
                return spec if len(spec.classes) == len(classes) else spec.with_classes(classes)
    raise CheckpointError(f"{path.name}: not an RTMDet-Ins model of a known size ({', '.join(OFFICIAL_NAMES)} or nano).")


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    skipped = ("num_batches_tracked", "rtm_cls")
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if not any(part in name for part in skipped) and not name.startswith("data_preprocessor.")
    }


def _classes_in(meta: dict[str, Any]) -> tuple[str, ...] | None:
    data = meta.get("dataset_meta") or {}
    classes = data.get("classes") or data.get("CLASSES") or meta.get("CLASSES")
    return tuple(str(name) for name in classes) if classes else None


def _spec_from_description(description: Any, path: Path) -> ModelSpec:
    if not isinstance(description, dict) or set(description) != set(SPEC_KEYS):
        raise CheckpointError(f"{path.name}: its model description must have exactly {', '.join(SPEC_KEYS)}.")
    check_types(description["config"], path.name)
    try:
        classes = tuple(str(name) for name in description["classes"])
        return ModelSpec(str(description["name"]), classes, int(description["input_size"]), dict(description["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: its model description is not usable ({error!r}).") from error


def _as_fp32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
