"""Reads and writes weights, without executing code from a file.

    released or trained .pth ─▶ pipeline.model.unpickling      ─┐
    our .safetensors         ─▶ raw tensors + JSON header      ─┴▶ Checkpoint(spec, state_dict)

The network is described by the file's `model_spec` (checkpoints of `jobs.finetune`), or recognised by the shapes of its tensors. In the
second case labels and input size come from mmdet's configuration in the file (`pipeline.model.config_text`), or from the arguments of
`python -m pipeline.model.zoo import`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import CheckpointError
from pipeline.model.config_text import MmdetFacts, read_facts
from pipeline.model.spec import (
    OFFICIAL_INPUT_SIZE_PX,
    OFFICIAL_NAMES,
    ModelSpec,
    build_network,
    check_types,
    coco_classes,
    spec_of_tensors,
)
from pipeline.model.unpickling import other_kind, unpickle_tensors

logger = logging.getLogger(__name__)
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

        Raises: CheckpointError if names or shapes do not fit the network.
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


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a file, of any network.

    Attributes:
        tensors: by mmdet's names; float ones are float32.
        classes: label names in the order of the class channels; None if the file does not contain them.
    """

    tensors: dict[str, torch.Tensor]
    classes: tuple[str, ...] | None


def load_checkpoint(path: Path | str, classes: tuple[str, ...] | None = None, input_size: int | None = None) -> Checkpoint:
    """Read an mmengine `.pth` or one of our `.safetensors` files.

    Args:
        classes, input_size: labels, as many as the network has class channels, and side of the square input in pixels; they override
            those in the file.
    Raises:
        CheckpointError: the file is missing, damaged, malicious or no RTMDet-Ins model, its labels or input size are unknown, or it has
            numbers that are not finite.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _overridden(_load_safetensors(path), path, classes, input_size)
    return _from_mmengine(unpickle_tensors(path), path, classes, input_size)


def _overridden(checkpoint: Checkpoint, path: Path, classes: tuple[str, ...] | None, input_size: int | None) -> Checkpoint:
    spec = checkpoint.spec
    _check_label_count(classes or spec.classes, spec, path)
    return replace(checkpoint, spec=replace(spec, classes=classes or spec.classes, input_size=input_size or spec.input_size))


def _check_label_count(classes: tuple[str, ...], spec: ModelSpec, path: Path) -> None:
    if len(classes) != len(spec.classes):
        raise CheckpointError(f"{path.name}: {len(classes)} labels for {len(spec.classes)} class channels.")


def load_weights(path: Path | str) -> Weights:
    """Read only tensors and labels of a file, to start a training from.

    Raises:
        CheckpointError: the file is missing, damaged or malicious, or has numbers that are not finite.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return Weights(tensors, _described_classes(_json_object(metadata.get("model_spec"))))
    content = unpickle_tensors(path)
    meta = _meta(content)
    return Weights(_network_tensors(content, path), _described_classes(meta.get("model_spec")) or read_facts(meta).classes)


def save_safetensors(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write weights in half precision, with name, classes, input size and configuration as JSON in the header.

    Batch-norm statistics and every other float become float16; a tensor with a number that float16 cannot hold stays float32.

    Raises:
        CheckpointError: a number is NaN or infinite.
    """
    spec = checkpoint.spec
    tensors = {}
    _check_values(checkpoint.state_dict, spec.name)
    for name, value in checkpoint.state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        tensors[name] = _smaller(value).contiguous()
    description = {"name": spec.name, "classes": list(spec.classes), "input_size": spec.input_size, "config": spec.config}
    # Not save_file: only the owner could read its files, and a service often runs as another user. The rename keeps the old file readable
    # for open readers and when the disk is full.
    draft = Path(f"{path}.{os.getpid()}.part")
    try:
        draft.write_bytes(save(tensors, metadata={"format": FORMAT, "model_spec": json.dumps(description)}))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _smaller(value: torch.Tensor) -> torch.Tensor:
    """The tensor in half precision if all its values are finite there, else unchanged."""
    half = value.to(torch.float16) if value.is_floating_point() else value
    return half if torch.isfinite(half).all() else value


def _load_safetensors(path: Path) -> Checkpoint:
    tensors, metadata = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path.name}: its header has format {metadata.get('format')!r}, expected {FORMAT!r}.")
    try:
        description = json.loads(metadata["model_spec"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path.name}: its header contains no model description.") from error
    return Checkpoint(_spec_from_description(description, path), tensors)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: _as_fp32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: not a readable safetensors file ({other_kind(path) or error}).") from error
    _check_values(tensors, path.name)
    return tensors, metadata


def _from_mmengine(content: dict[str, Any], path: Path, classes: tuple[str, ...] | None, input_size: int | None) -> Checkpoint:
    tensors = _network_tensors(content, path)
    meta = _meta(content)
    if "model_spec" in meta:
        return _overridden(Checkpoint(_spec_from_description(meta["model_spec"], path), tensors), path, classes, input_size)
    facts, spec = read_facts(meta), spec_of_tensors(tensors)
    if spec is None:
        raise CheckpointError(f"{path.name}: not an RTMDet-Ins model of a known size ({', '.join(OFFICIAL_NAMES)} or nano).")
    # The labels and input size of OpenMMLab's own releases are known, even if the file does not contain them.
    if any(path.name.startswith(f"{name}_") for name in OFFICIAL_NAMES):
        classes, input_size = classes or facts.classes or coco_classes(), input_size or OFFICIAL_INPUT_SIZE_PX
    return Checkpoint(_spec_of_mmdet(spec, facts, path, classes or facts.classes, input_size), tensors)


def _spec_of_mmdet(
    spec: ModelSpec, facts: MmdetFacts, path: Path, classes: tuple[str, ...] | None, input_size: int | None
) -> ModelSpec:
    """The recognised network with labels, input size and normalisation from the arguments or the file."""
    if classes is None:
        raise CheckpointError(f"{path.name}: the file does not contain the labels of its class channels. {_how_to_import(path)}")
    _check_label_count(classes, spec, path)
    width, height = facts.test_size_wh or (0, 0)
    if input_size is None and (not width or width != height):
        said = f"its test size {width} x {height} is not square" if width else "the file does not contain its test size"
        raise CheckpointError(f"{path.name}: {said}, so the input size is unknown. {_how_to_import(path)}")
    preprocessor = facts.preprocessor or {}
    if preprocessor.get("bgr_to_rgb"):
        raise CheckpointError(
            f"{path.name}: trained on RGB (bgr_to_rgb=True); only networks for BGR images, mmdet's default, are supported."
        )
    if unserved := facts.unserved_settings():
        logger.warning("%s: these test settings of the file are not used: %s", path.name, ", ".join(unserved))
    config = spec.config | {"data_preprocessor": spec.config["data_preprocessor"] | preprocessor}
    settings = facts.test_settings or {}
    if settings.get("nms", {}).get("type", "nms") != "nms":
        settings = {key: value for key, value in settings.items() if key != "nms"}
    config["test_cfg"] = spec.config["test_cfg"] | settings
    return replace(spec, classes=classes, input_size=input_size or width, config=config)


def _meta(content: dict[str, Any]) -> dict[str, Any]:
    """mmengine's `meta`; empty if there is none, or something else of that name."""
    meta = content.get("meta")
    return meta if isinstance(meta, dict) else {}


def _how_to_import(path: Path) -> str:
    return (
        f"Import it: python -m pipeline.model.zoo import {path.name} --labels cat,dog --image-size 640 --output mine.safetensors"
    )


def _network_tensors(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, without prefixes of other programs such as `module.` or `model.`.

    If a run used EMA, mmengine saves the averaged weights under the plain names and the raw ones in `ema_state_dict`; mmdet 2 saved
    copies as `ema_*` buffers. Both copies are ignored.
    """
    nested = (content.get(key) for key in ("state_dict", "model"))
    state = next((part for part in nested if isinstance(part, dict)), content)
    names = [name for name in state if isinstance(name, str)]
    prefix = min((name.split("backbone.", 1)[0] for name in names if ".backbone." in f".{name}"), key=len, default="")
    tensors = {
        name.removeprefix(prefix): _as_fp32(state[name])
        for name in names
        if isinstance(state[name], torch.Tensor) and not name.removeprefix(prefix).startswith(("ema_", "data_preprocessor."))
    }
    if not tensors:
        raise CheckpointError(f"{path.name}: holds no tensors.")
    _check_values(tensors, path.name)
    return tensors


def _spec_from_description(description: Any, path: Path) -> ModelSpec:
    if not isinstance(description, dict) or set(description) != set(SPEC_KEYS):
        raise CheckpointError(f"{path.name}: its model description must have exactly {', '.join(SPEC_KEYS)}.")
    check_types(description["config"], path.name)
    try:
        classes = tuple(str(name) for name in description["classes"])
        return ModelSpec(str(description["name"]), classes, int(description["input_size"]), dict(description["config"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path.name}: its model description is not usable ({error!r}).") from error


def _json_object(text: str | None) -> Any:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text or "null")
    except json.JSONDecodeError:
        return None


def _described_classes(description: Any) -> tuple[str, ...] | None:
    """The labels in a model description; None if it is something else, or has none."""
    classes = description.get("classes") if isinstance(description, dict) else None
    return tuple(map(str, classes)) if classes and isinstance(classes, (list, tuple)) else None


def _check_values(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    for tensor, value in tensors.items():
        if value.is_quantized or value.is_meta or value.layout != torch.strided:
            raise CheckpointError(f"{name}: {tensor} is quantized, sparse or has no values; export the weights as plain numbers.")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name}: {tensor} has values that are not finite: the training that made them diverged.")


def _as_fp32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value
