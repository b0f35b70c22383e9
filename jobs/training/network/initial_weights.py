"""Initial weights of a training: all fitting weights of a file, and class channels by the names of the classes.

Channels of classes that the file does not have begin as the mean of the file's class channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from jobs.training.network.layers import layers_of
from pipeline.model.checkpoints import load_weights

MIN_BACKBONE_SHARE = 0.5
"""Smallest share of the backbone's parameters that initial weights must provide; with fewer, training would start almost from scratch."""
CLASS_LAYER = "bbox_head.rtm_cls."
"""Convolutions whose output channels are the classes, one per level of the pyramid."""


def load_what_fits(network: nn.Module, path: Path, classes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Copy every weight of the file whose name and shape the network has, and class channels by name.

    Other classes get the mean of the file's class channels. Where the file has no class channels that fit, they stay as they are.

    Args:
        network: mmdet's RTMDet-Ins, initialised.
        path: `.pth` or `.safetensors`, of a detector with or without masks.
        classes: names of the network's class channels, in their order.
    Returns:
        A summary: how many tensors were loaded, which parts start from scratch, which classes keep their channels and how the others
        start. And the classes that the file does not have.
    Raises:
        ValueError: less than half of the backbone fits: the weights are of another network.
    """
    weights, own = load_weights(path), network.state_dict()
    tensors = {name: value for name, value in weights.tensors.items() if not name.startswith(CLASS_LAYER)}
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    backbone = {name: value.numel() for name, value in own.items() if name.startswith("backbone.")}
    share = sum(numbers for name, numbers in backbone.items() if name in fitting) / sum(backbone.values())
    if share < MIN_BACKBONE_SHARE:
        raise ValueError(
            f"{path}: {len(fitting)} of its {len(weights.tensors)} tensors fit this network, {share:.0%} of the backbone: they are "
            "another network's, or of another size. Is --model right?"
        )
    copied = _class_channels(own, weights.tensors, weights.classes or (), classes)
    network.load_state_dict(fitting | copied, strict=False)
    absent = [name for name in own if name not in fitting and name not in copied and "num_batches" not in name]
    layers = f"{len(fitting) + len(copied)} of {len(own)} tensors loaded; fresh: {', '.join(layers_of(absent)) or 'none'}."
    kept = [name for name in classes if copied and name in (weights.classes or ())]
    fresh = tuple(name for name in classes if name not in kept)
    start = " (from the mean of the file's class channels)" if copied else ""
    if weights.classes is None:
        channels = f"all fresh{start}, the file does not say which classes its channels are"
    else:
        channels = f"{', '.join(kept) or 'none'} from the file by name; fresh: {', '.join(fresh) + start if fresh else 'none'}"
    return f"{path.name}: {layers}\nClass channels: {channels}.", fresh


def _class_channels(
    own: dict[str, Tensor], given: dict[str, Tensor], names: Sequence[str], classes: Sequence[str]
) -> dict[str, Tensor]:
    """The network's class layers: rows of classes that the file has, too; the mean of the file's rows for the others.

    The mean row already separates objects from background, and it has the right size for the features that it is multiplied by.
    """
    layers = {}
    for name, fresh in own.items():
        value = given.get(name)
        if not (name.startswith(CLASS_LAYER) and value is not None and value.shape[1:] == fresh.shape[1:]):
            continue
        if names and len(value) != len(names):
            raise ValueError(f"the file names {len(names)} classes for the {len(value)} channels of {name}.")
        mean = value.float().mean(dim=0)
        layers[name] = torch.stack([value[names.index(label)].float() if label in names else mean for label in classes])
    return layers
