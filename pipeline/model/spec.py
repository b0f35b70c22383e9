"""A model without weights: name, classes, input size and mmdet's configuration of the layers.

    official_spec("rtmdet-ins_x_8xb16-300e_coco") ─┐
    nano_spec(classes=("person",))                 ├─▶ ModelSpec ─▶ build_network(spec) ─▶ torch module, eval mode
    load_checkpoint(path).spec                     ─┘

Weights come from `pipeline.model.checkpoints`; nothing is downloaded here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

import mmdet  # noqa: E402  (after the stand-in)
from mmdet.registry import MODELS  # noqa: E402
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from pipeline.errors import CheckpointError  # noqa: E402
from pipeline.model.rtmdet_nano import nano_model_config  # noqa: E402
from pipeline.types import COARSEST_STRIDE_PX  # noqa: E402

NANO_NAME = "rtmdet-ins_nano"
OFFICIAL_NAMES = (
    "rtmdet-ins_tiny_8xb32-300e_coco",
    "rtmdet-ins_s_8xb32-300e_coco",
    "rtmdet-ins_m_8xb32-300e_coco",
    "rtmdet-ins_l_8xb32-300e_coco",
    "rtmdet-ins_x_8xb16-300e_coco",
)
OFFICIAL_INPUT_SIZE_PX = 640

# Every `type` that a model configuration may contain. mmengine would build any Python object by its dotted name, so a configuration from
# a file is checked against this list first.
ALLOWED_TYPES = frozenset(
    "RTMDet DetDataPreprocessor CSPNeXt CSPNeXtPAFPN RTMDetInsSepBNHead RTMDetInsDepthwiseHead "
    "MlvlPointGenerator DistancePointBBoxCoder QualityFocalLoss GIoULoss DiceLoss DynamicSoftLabelAssigner "
    "nms BN SiLU ReLU".split()
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model without its weights.

    Attributes:
        name: OpenMMLab configuration name, or the name given by a fine-tuning run.
        classes: label names, in the order of the network's class channels.
        input_size: side of the square network input, pixels, a multiple of 32.
        config: the `model` section of mmdet's configuration, plain JSON types only.
    """

    name: str
    classes: tuple[str, ...]
    input_size: int
    config: dict[str, Any]

    def __post_init__(self) -> None:
        if self.input_size <= 0 or self.input_size % COARSEST_STRIDE_PX:
            raise CheckpointError(f"{self.name}: input_size must be a positive multiple of 32, got {self.input_size}.")
        channels = self.config["bbox_head"]["num_classes"]
        if channels != len(self.classes):
            raise CheckpointError(f"{self.name}: {len(self.classes)} class names for {channels} class channels.")

    def with_classes(self, classes: tuple[str, ...]) -> ModelSpec:
        """The same network with other labels and as many class channels."""
        head = self.config["bbox_head"] | {"num_classes": len(classes)}
        return replace(self, classes=tuple(classes), config=self.config | {"bbox_head": head})


def official_spec(name: str) -> ModelSpec:
    """One of OpenMMLab's five RTMDet-Ins sizes on the 80 COCO classes, from the configuration mmdet ships.

    Raises:
        CheckpointError: no such model; the message lists the names there are.
    """
    if name not in OFFICIAL_NAMES:
        raise CheckpointError(f"{name!r} is not an official RTMDet-Ins model; known: {', '.join(OFFICIAL_NAMES)}.")
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "rtmdet" / f"{name}.py"
    config = _portable(Config.fromfile(path).model.to_dict())
    return ModelSpec(name, coco_classes(), OFFICIAL_INPUT_SIZE_PX, config)


def nano_spec(classes: tuple[str, ...] = ("person",), input_size: int = OFFICIAL_INPUT_SIZE_PX) -> ModelSpec:
    """RTMDet-Ins-nano, the size this project trains and ships itself (`pipeline/model/rtmdet_nano.py`)."""
    suffix = f"_{classes[0]}" if len(classes) == 1 else ""
    return ModelSpec(NANO_NAME + suffix, tuple(classes), input_size, _portable(nano_model_config(len(classes))))


def build_network(spec: ModelSpec) -> nn.Module:
    """Build mmdet's RTMDet with fresh weights, in eval mode, without downloading pretrained ones.

    Raises:
        CheckpointError: the configuration names a layer type that RTMDet-Ins does not use, or no network can be built from it.
    """
    check_types(spec.config, spec.name)
    init_default_scope("mmdet")
    try:
        network = MODELS.build(ConfigDict(copy.deepcopy(spec.config)))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{spec.name}: mmdet cannot build a network from its configuration: {error}") from error
    network.dataset_meta = {"classes": spec.classes}
    evaluating: nn.Module = network.eval()
    return evaluating


def spec_of_tensors(tensors: Mapping[str, Tensor]) -> ModelSpec | None:
    """The RTMDet-Ins size whose tensors have these names and shapes, except for the class channels; None for other networks.

    Its labels are `class 0`, `class 1`, …, unless it has as many class channels as the known model.
    """
    shapes = _shapes(tensors)
    class_weight = tensors.get("bbox_head.rtm_cls.0.weight")
    if class_weight is not None and class_weight.ndim:
        classes = tuple(f"class {number}" for number in range(class_weight.shape[0]))
        for spec in [*map(official_spec, OFFICIAL_NAMES), nano_spec()]:
            if _shapes(build_network(spec).state_dict()) == shapes:
                return spec if len(spec.classes) == len(classes) else spec.with_classes(classes)
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    skipped = ("num_batches_tracked", "rtm_cls")
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if not any(part in name for part in skipped) and not name.startswith("data_preprocessor.")
    }


def mmdet_config(spec: ModelSpec) -> Config:
    """The whole configuration that mmdet's own `inference_detector` and test loop want, for comparisons with it."""
    size = (spec.input_size, spec.input_size)
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pipeline = [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "Resize", "scale": size, "keep_ratio": True},
        {"type": "Pad", "size": size, "pad_val": {"img": (114, 114, 114)}},
        {"type": "PackDetInputs", "meta_keys": meta_keys},
    ]
    loader = {"dataset": {"pipeline": pipeline}}
    return Config({"model": spec.config, "test_dataloader": loader, "test_pipeline": pipeline, "default_scope": "mmdet"})


def coco_classes() -> tuple[str, ...]:
    """The 80 COCO labels in the order of the official models' class channels."""
    from mmdet.datasets import CocoDataset

    return tuple(CocoDataset.METAINFO["classes"])


def check_types(config: Any, name: str) -> None:
    """Raise CheckpointError for a configuration with a `type` that is not part of RTMDet-Ins."""
    if isinstance(config, dict):
        kind = config.get("type")
        if kind is not None and not (isinstance(kind, str) and kind in ALLOWED_TYPES):
            raise CheckpointError(
                f"{name}: refused, its configuration contains the type {kind!r}, which is not part of RTMDet-Ins."
            )
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for part in config:
        check_types(part, name)


def _portable(config: Any) -> Any:
    """A copy with plain JSON types, without pretrained downloads, and with BN instead of SyncBN, which needs a process group."""
    if isinstance(config, dict):
        kept = {key: _portable(value) for key, value in config.items() if key not in ("init_cfg", "batch_augments")}
        return kept | {"type": "BN"} if kept.get("type") == "SyncBN" else kept
    if isinstance(config, (list, tuple)):
        return [_portable(part) for part in config]
    return config
