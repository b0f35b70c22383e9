"""The same training in several processes on a Ray cluster: Ray Train starts them, replaces lost ones and joins them by torch.distributed.

    jobs.finetune --processes N ─▶ TorchTrainer ─▶ N x jobs.finetune.finetune ─▶ one row of samples, gradients averaged at each step
                                       └─ a process is lost ─▶ all start anew and go on from the newest checkpoint in --work-dir

The work folder must be one that every machine sees under the same path. mmdet's losses divide by counts over all processes, so N processes
with batches of B make the steps of one with batches of N x B, but for batch norms, which see their own B photos.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from jobs.training.results import check_work_dir, newest_checkpoint
from jobs.training.settings import FinetuneSettings

MAX_LOSSES = 3
"""Times that a run goes on after the loss of a process."""


def rank() -> int:
    """Number of this training process; 0 where there is one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Inside, only the first process prints: the others would say the same."""
    with contextlib.redirect_stdout(io.StringIO()) if rank() else contextlib.nullcontext():
        yield


def finetune_on_cluster(settings: FinetuneSettings) -> None:
    """Run `jobs.finetune.finetune` in `settings.processes` processes, on the cluster of RAY_ADDRESS or on this machine.

    Raises:
        ValueError: the work folder holds another run, or the training failed; the message is the process's own.
        ImportError: Ray Train's packages are not installed (`.venv/bin/pip install -e '.[cluster]'`).
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    check_work_dir(settings.work_dir, resume=settings.resume)
    if settings.resume and newest_checkpoint(settings.work_dir) is None:
        raise ValueError(
            f"--resume: there is no checkpoint in {settings.work_dir}. Leave --resume out to start from the beginning."
        )
    settings = _with_absolute_paths(settings)
    on_cards = torch.cuda.is_available()
    trainer = TorchTrainer(
        _train,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=settings.processes, use_gpu=on_cards),
        run_config=RunConfig(
            name="ray",
            storage_path=str(settings.work_dir),
            failure_config=FailureConfig(max_failures=MAX_LOSSES),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise ValueError(str(error).strip().rsplit("\n", 1)[-1]) from error
    finally:
        ray.shutdown()


def _train(config: dict[str, Any]) -> None:
    """What each process does: begin, or go on where the processes before it were lost."""
    from jobs.finetune import finetune  # by name: the command that starts this is __main__, which cannot be sent

    settings: FinetuneSettings = config["settings"]
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    going_on = newest_checkpoint(settings.work_dir) is not None
    distributed.barrier()  # nobody writes before all have looked
    with quiet_unless_first():
        finetune(replace(settings, resume=going_on))


def _with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """A process on another machine begins in another folder."""
    names = ("train", "train_images", "val", "val_images", "work_dir")
    paths = {name: getattr(settings, name) for name in names}
    return replace(settings, **{name: path.resolve() for name, path in paths.items() if path is not None})
