"""Training in several processes on a Ray cluster: Ray Train starts, connects and replaces them.

    jobs.finetune --processes N ─▶ TorchTrainer ─▶ N x run.finetune ─▶ one sequence of samples, gradients averaged each step
                                       └─ a process is lost ─▶ all restart from the newest checkpoint in --work-dir

All machines must share the work folder under the same path. mmdet's losses divide by counts over all processes, so N processes
with batches of B train like one process with batches of N x B, except for batch norms, which use their own B photos.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmengine)

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from torch import distributed

from jobs.training.output.results import check_work_dir, claimed, newest_checkpoint, required_checkpoint
from jobs.training.run import finetune
from jobs.training.settings import FinetuneSettings

MAX_LOSSES = 3
"""How often a run continues after losing a process."""


def finetune_on_cluster(settings: FinetuneSettings) -> None:
    """Run `jobs.training.run.finetune` in `settings.processes` processes, on the cluster of RAY_ADDRESS or on this machine.

    Raises:
        ValueError: the work folder holds another run, or the training failed; with the message of the process.
        ImportError: Ray Train's packages are not installed (`.venv/bin/pip install -e '.[cluster]'`).
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from jobs.ray_session import connect

    check_work_dir(settings.work_dir, resume=settings.resume)
    if settings.resume:
        required_checkpoint(settings.work_dir)
    settings = _with_absolute_paths(settings)
    on_cards = torch.cuda.is_available()
    trainer = TorchTrainer(
        _train,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=settings.processes, use_gpu=on_cards),
        run_config=RunConfig(
            name="ray", storage_path=str(settings.work_dir), failure_config=FailureConfig(max_failures=MAX_LOSSES)
        ),
    )
    with claimed(settings.work_dir):
        connect()
        if note := too_small(settings.processes, ray.cluster_resources(), "GPU" if on_cards else "CPU"):
            print(note, flush=True)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise ValueError(str(error).strip().rsplit("\n", 1)[-1]) from error
        finally:
            ray.shutdown()


def too_small(processes: int, resources: Mapping[str, float], kind: str) -> str:
    """What to say of a cluster that has no room for all processes; empty where it has. A cluster with an autoscaler grows."""
    has = resources.get(kind, 0)
    if has >= processes:
        return ""
    return (
        f"--processes {processes} needs {processes} {kind}s and the cluster has {has:g}: training begins once it has grown. "
        f"On one machine, take --processes {max(int(has), 1)} at most."
    )


def _train(config: dict[str, Any]) -> None:
    """The function of each process: starts the run, or continues it after a loss."""
    settings: FinetuneSettings = config["settings"]
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    going_on = newest_checkpoint(settings.work_dir) is not None
    distributed.barrier()  # no process writes before all have checked
    with contextlib.redirect_stdout(io.StringIO()) if get_rank() else contextlib.nullcontext():  # the others would print the same
        finetune(replace(settings, resume=going_on))


def _with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """Make paths absolute: a process on another machine has another working folder."""
    names = ("train", "train_images", "val", "val_images", "work_dir")
    paths: dict[str, Any] = {name: path.resolve() for name in names if (path := getattr(settings, name)) is not None}
    if settings.init_weights and Path(settings.init_weights).is_file():
        paths["init_weights"] = str(Path(settings.init_weights).resolve())
    return replace(settings, **paths)
