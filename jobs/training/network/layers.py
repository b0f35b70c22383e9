"""Layers by name: which are frozen, learning rates by layer, gradient checkpointing."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps parts of the network unchanged.

    Args:
        frozen: name prefixes of layers whose parameters and batch-norm statistics stay.
        fixed_statistics: name prefixes of layers that train but keep their batch-norm statistics.
    """

    priority = "VERY_HIGH"

    def __init__(self, frozen: Sequence[str] = (), fixed_statistics: Sequence[str] = ()) -> None:
        self._frozen = tuple(frozen)
        self._fixed = tuple(frozen) + tuple(fixed_statistics)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Put fixed batch norms back into eval mode: mmengine sometimes sets the whole network to train mode."""
        for name, module in unwrapped(runner.model).named_modules():
            if isinstance(module, _BatchNorm) and name.startswith(self._fixed) and self._fixed:
                module.eval()


def unwrapped(model: nn.Module) -> Any:
    """The network itself, which torch's DistributedDataParallel holds as its `module`."""
    return getattr(model, "module", model)


def freeze(network: nn.Module, prefixes: Sequence[str]) -> int:
    """Stop the gradient of every parameter whose name starts with one of the prefixes.

    Returns: how many numbers still train.
    Raises: ValueError where a prefix names no parameter, or nothing is left to train.
    """
    check_layers(network, "--freeze", prefixes)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (prefixes and name.startswith(tuple(prefixes))))
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if not trained:
        raise ValueError(f"--freeze {' '.join(prefixes)}: nothing is left to train.")
    return trained


def check_layers(network: nn.Module, option: str, prefixes: Sequence[str], *, batch_norms: bool = False) -> None:
    """Raise ValueError if one of the option's prefixes matches no parameter, or no batch norm."""
    named = network.named_modules() if batch_norms else network.named_parameters()
    names = [name for name, part in named if not batch_norms or isinstance(part, _BatchNorm)]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            kind = "batch norm" if batch_norms else "layer"
            raise ValueError(f"{option} {prefix}: the network has no such {kind}. It has {', '.join(layers_of(names))}.")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RatesByLayer(DefaultOptimWrapperConstructor):
    """Learning rates by name prefix, `paramwise_cfg["rates"]`: pairs of prefix and factor, the longest prefix wins.

    mmengine's own `custom_keys` match in the middle of a name, too, and switch `norm_decay_mult` and `bias_decay_mult` off for
    what they match.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Add the parameters of the whole network, or of one of its parts, where mmengine calls this again for each."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        rates = sorted(self.paramwise_cfg["rates"], key=lambda rate: len(rate[0]))
        check_layers(module, "--lr-mult", [layer for layer, _ in rates])
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            for layer, factor in rates:
                if names[id(group["params"][0])].startswith(layer):
                    group["lr"] = self.base_lr * factor


def layers_of(names: Iterable[str]) -> list[str]:
    """The parts of the network, `backbone.stem`, that parameters or modules of these names belong to; sorted."""
    return sorted({".".join(name.split(".")[:2]) for name in names})


class Recomputed(nn.Sequential):
    """A Sequential that stores only its input and computes its activations again in the backward pass.

    Its batch norms run twice per batch, so their running statistics adapt a little faster. Not mmengine's `activation_checkpointing`, which
    uses torch's reentrant variant: it computes no gradient for a part whose input needs none, such as the one after a frozen stem.
    """

    def forward(self, features: Any) -> Any:
        """As Sequential."""
        layers: Any = super().forward
        if self.training and torch.is_grad_enabled():
            return checkpoint(layers, features, use_reentrant=False)
        return layers(features)


def recompute_backbone(network: Any) -> int:
    """Make every stage of mmdet's CSPNeXt a `Recomputed`, with the same names and weights; returns how many."""
    stages = [part for name, part in network.backbone.named_children() if name.startswith("stage")]
    for stage in stages:
        if type(stage) is not nn.Sequential:
            raise TypeError(f"expected the backbone's stages to be nn.Sequential, got {type(stage).__name__}")
        stage.__class__ = Recomputed
    return len(stages)
