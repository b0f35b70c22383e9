"""Reads labels and test settings from an mmdet checkpoint, which stores its configuration as Python source.

The source is only parsed and searched for literals (numbers, strings, lists, `dict(...)`); it is never executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_SOURCE_CHARS = 1_000_000
"""mmdet's longest configurations have some 20,000."""
SERVED_TEST_SETTINGS = {"nms_pre": 1000, "min_bbox_size": 0, "mask_thr_binary": 0.5, "nms.type": "nms", "nms.iou_threshold": 0.6}
"""RTMDet-Ins' test settings, which `pipeline.inference.postprocess` uses. Requests choose score_thr and max_per_img."""


@dataclass(frozen=True, slots=True)
class MmdetFacts:
    """Metadata of an mmdet checkpoint; None for what the file does not contain.

    Attributes:
        classes: label names, in the order of the class channels.
        test_size_wh: width and height that the test pipeline scales and pads to, pixels.
        preprocessor: mean, std and bgr_to_rgb of mmdet's `data_preprocessor`, as far as given.
        test_settings: numbers and text in mmdet's `model.test_cfg`, such as {"nms_pre": 1000, "nms": {"iou_threshold": 0.6}}.
    """

    classes: tuple[str, ...] | None = None
    test_size_wh: tuple[int, int] | None = None
    preprocessor: dict[str, Any] | None = None
    test_settings: dict[str, Any] | None = None

    def unserved_settings(self) -> list[str]:
        """Test settings of the file that differ from those used here, such as "nms_pre 3000 (here 1000)"."""
        settings = self.test_settings or {}
        given = settings | {f"nms.{name}": value for name, value in settings.get("nms", {}).items()}
        known = ((name, given.get(name), ours) for name, ours in SERVED_TEST_SETTINGS.items())
        return [f"{name} {value} (here {ours})" for name, value, ours in known if value is not None and value != ours]


def read_facts(meta: dict[str, Any]) -> MmdetFacts:
    """Read a checkpoint's `meta`, of mmdet 3 (`dataset_meta`, `cfg`) or mmdet 2 (`CLASSES`, `config`)."""
    source = meta.get("cfg") or meta.get("config")
    config = read_literals(source) if isinstance(source, str) else {}
    given = _at(meta, "dataset_meta", "classes"), _at(meta, "dataset_meta", "CLASSES"), meta.get("CLASSES")
    return MmdetFacts(
        next(filter(None, map(_names, given)), None),
        _test_size(config),
        _preprocessor(_at(config, "model", "data_preprocessor")),
        _test_settings(_at(config, "model", "test_cfg")),
    )


def read_literals(source: str) -> dict[str, Any]:
    """The top-level assignments of a Python source; None for values that are not literals. Empty if it is not valid Python."""
    if len(source) > MAX_SOURCE_CHARS:
        return {}
    try:
        body = ast.parse(source).body
        return {
            target.id: _literal(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    """The value of a literal or a `dict(...)` of literals; None for any other expression."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_literal(part) for part in parts)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {keyword.arg: _literal(keyword.value) for keyword in keywords if keyword.arg}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    return None


def _names(classes: Any) -> tuple[str, ...] | None:
    """Label names; None for anything but a list. A single string is one class, because `classes=('cat')` is a string in Python."""
    if isinstance(classes, str):
        return (classes,)
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else None


def _preprocessor(section: Any) -> dict[str, Any] | None:
    if not isinstance(section, dict):
        return None
    return {key: section[key] for key in ("mean", "std", "bgr_to_rgb") if section.get(key) is not None}


def _test_settings(section: Any) -> dict[str, Any] | None:
    if not isinstance(section, dict):
        return None
    nms = _test_settings(section.get("nms"))
    plain = {key: value for key, value in section.items() if isinstance(key, str) and isinstance(value, (int, float, str))}
    return plain | ({"nms": nms} if nms else {})


def _test_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Size of the last Pad, else of the last Resize, in the test pipeline."""
    pipelines = [
        _at(config, "test_dataloader", "dataset", "pipeline"),
        config.get("test_pipeline"),
        _at(config, "data", "test", "pipeline"),
    ]
    for pipeline in pipelines:
        sizes = {kind: size for kind, size in _sizes(pipeline) if size}
        if size := sizes.get("Pad") or sizes.get("Resize"):
            return size
    return None


def _sizes(pipeline: Any) -> Iterator[tuple[str, tuple[int, int] | None]]:
    for step in pipeline if isinstance(pipeline, (list, tuple)) else ():
        if not isinstance(step, dict):
            continue
        if step.get("type") in ("Resize", "Pad"):
            yield step["type"], _pair(step.get("size") if step["type"] == "Pad" else step.get("scale", step.get("img_scale")))
        else:  # mmdet 2 puts the steps into a MultiScaleFlipAug, and the size beside them
            yield "Resize", _pair(step.get("img_scale"))
            yield from _sizes(step.get("transforms"))


def _pair(value: Any) -> tuple[int, int] | None:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(side) is int for side in value)
    return (value[0], value[1]) if whole else None


def _at(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config
