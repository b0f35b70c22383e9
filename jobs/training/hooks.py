"""mmengine hooks: frozen layers, rates by layer, checkpoints that describe their model, one at every run's end."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from jobs.command_line import naming


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


@HOOKS.register_module()
class SavingHook(CheckpointHook):
    """mmengine's CheckpointHook, which here also saves if a run ends early, by early stopping or a signal."""

    best_ckpt_path: str | None

    def before_train(self, runner: Runner) -> None:
        """If the run was moved, use the best checkpoint in this folder: mmengine would delete the one in the other folder."""
        super().before_train(runner)
        if self.save_best and self.best_ckpt_path:
            self.best_ckpt_path = str(Path(self.out_dir) / Path(self.best_ckpt_path).name)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """mmengine deletes the best checkpoint before it saves the new one: where that fails, the old one comes back."""
        with _kept(Path(self.best_ckpt_path) if self.best_ckpt_path and is_main_process() else None):
            super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Also names the folder where mmengine's own file in it cannot be written."""
        with naming(runner.work_dir):
            super()._save_checkpoint_with_step(runner, step, meta)

    def after_train(self, runner: Runner) -> None:
        """Save, unless the last step was saved."""
        done = runner.iter
        if done and (self.last_ckpt is None or Path(self.last_ckpt).name != self.filename_tmpl.format(done)):
            self._save_checkpoint_with_step(runner, done, {"epoch": runner.epoch, "iter": done})
        super().after_train(runner)


@contextmanager
def _kept(path: Path | None) -> Iterator[None]:
    """Within: the file may be deleted; after an OSError it is there again."""
    if path is None:
        yield
        return
    spare = path.with_suffix(".spare")
    with suppress(OSError):  # there is no such file, or its file system has no links
        os.link(path, spare)
    try:
        yield
    except OSError:
        if spare.exists():
            spare.replace(path)
        raise
    finally:
        spare.unlink(missing_ok=True)


@HOOKS.register_module()
class DescribeModelHook(Hook):
    """Writes a description of the model and the run into every checkpoint, as plain JSON types.

    Args:
        model_spec: JSON of what `pipeline.model.checkpoints.load_checkpoint` needs to build the network again. As text, because
            mmengine turns the dicts of its configuration into a class of its own, which our loader rightly refuses.
        lasting: JSON of what `--resume` must find unchanged.
    """

    def __init__(self, model_spec: str, lasting: str) -> None:
        self._described = {"model_spec": json.loads(model_spec), "lasting": json.loads(lasting)}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Add the description to the checkpoint's `meta`."""
        checkpoint["meta"] |= self._described


def layers_of(names: Iterable[str]) -> list[str]:
    """The parts of the network, `backbone.stem`, that parameters or modules of these names belong to; sorted."""
    return sorted({".".join(name.split(".")[:2]) for name in names})
