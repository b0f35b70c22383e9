"""What the training loop does besides mmengine's own hooks: freezing layers, and a checkpoint that knows what it is."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json
from collections.abc import Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps parts of the network as they are.

    Args:
        frozen: name prefixes of layers whose parameters and batch-norm statistics stay.
        fixed_statistics: name prefixes of layers that train but keep their batch-norm statistics.
    """

    priority = "VERY_HIGH"

    def __init__(self, frozen: Sequence[str] = (), fixed_statistics: Sequence[str] = ()) -> None:
        self._frozen = tuple(frozen)
        self._fixed = tuple(frozen) + tuple(fixed_statistics)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """mmengine puts the whole network in train mode now and then: put the fixed batch norms back."""
        for name, module in runner.model.named_modules():
            if isinstance(module, _BatchNorm) and name.startswith(self._fixed) and self._fixed:
                module.eval()


def freeze(network: nn.Module, prefixes: Sequence[str]) -> int:
    """Stop the gradient of every parameter whose name starts with one of the prefixes.

    Returns: how many numbers still train.
    Raises: ValueError where a prefix names no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"--freeze {prefix}: the network has no such layer. It has {_layers(names)}.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (prefixes and name.startswith(tuple(prefixes))))
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@HOOKS.register_module()
class DescribeModelHook(Hook):
    """Writes the model's name, classes, input size and configuration into every checkpoint, as plain JSON types.

    Args:
        description: JSON of what `pipeline.checkpoints.load_checkpoint` needs to build the network again. As text, because
            mmengine turns the dicts of its configuration into a class of its own, which our loader rightly refuses.
    """

    def __init__(self, description: str) -> None:
        self._description = description

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        checkpoint["meta"]["model_spec"] = json.loads(self._description)


def _layers(names: Sequence[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
