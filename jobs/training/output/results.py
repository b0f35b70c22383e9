"""The work folder: checkpoints to resume from, and the exported model made from the best one."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jobs.training.loop.saving import step_of
from jobs.training.output.console import by_label_table, per_cent
from pipeline.model.checkpoints import load_checkpoint, save_safetensors
from pipeline.model.unpickling import harmless_types_only

FINAL_NAME = "final.safetensors"
NEWEST_NAME = "last_checkpoint"
"""File in which mmengine records its newest checkpoint."""
LOCK_NAME = ".lock"


def check_work_dir(work_dir: Path, *, resume: bool) -> None:
    """Raise ValueError if a new run would mix its checkpoints with those of another run."""
    if not resume and any((work_dir / name).exists() for name in (NEWEST_NAME, FINAL_NAME)):
        raise ValueError(f"--work-dir: {work_dir} already holds a run. --resume continues it; a new run needs another folder.")


@contextmanager
def claimed(work_dir: Path) -> Iterator[None]:
    """Within: the folder is this process's, on disks that have locks. Loader processes do not keep it: they are forks.

    Raises:
        ValueError: another run writes it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / LOCK_NAME).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"--work-dir: another run is writing {work_dir}. Wait for its end, or take another folder."
                ) from error
        yield


def newest_checkpoint(work_dir: Path) -> Path | None:
    """A run's newest checkpoint, also if the folder was moved; None if there is none.

    That with the largest number of steps, if a full disk or a kill left mmengine's record of it empty.
    """
    pointer = work_dir / NEWEST_NAME
    newest = work_dir / Path(pointer.read_text().strip()).name if pointer.is_file() else None
    if newest and newest.is_file():
        return newest
    return _last_saved(work_dir)


def _last_saved(work_dir: Path, but: Path | None = None) -> Path | None:
    """The checkpoint with the most steps, other than `but`."""
    return max((path for path in work_dir.glob("iter_*.pth") if path != but), key=lambda path: step_of(path.name), default=None)


def required_checkpoint(work_dir: Path) -> Path:
    """The newest checkpoint. Raises ValueError if there is none."""
    if newest := newest_checkpoint(work_dir):
        return newest
    raise ValueError(f"--resume: there is no checkpoint in {work_dir}. Leave --resume out to start from the beginning.")


def checkpoint_to_resume(work_dir: Path, lasting: dict[str, Any]) -> Path:
    """The newest checkpoint. It includes optimizer and learning rates, so only a run with the same settings can resume from it.

    Args:
        lasting: `jobs.training.runner_config.lasting_settings` of this call.
    Raises:
        ValueError: there is no checkpoint, it cannot be read, or it is of a run with other settings.
    """
    newest = required_checkpoint(work_dir)
    before = _read(newest).get("meta", {}).get("lasting", lasting)
    changed = [
        f"{option} {_as_text(before.get(option))} (now {_as_text(now)})"
        for option, now in lasting.items()
        if before.get(option, now) != now  # an older version's run has not recorded all of them
    ]
    if changed:
        raise ValueError(
            f"--resume: {newest} is from a run with {', '.join(changed)}. Use the same settings and data, or start a new run in another "
            f"folder with --init-weights {newest}."
        )
    return newest


def photos_a_step_before(work_dir: Path) -> int | None:
    """Of the run that a work folder holds; None where there is no checkpoint that says so."""
    newest = newest_checkpoint(work_dir)
    photos = _read(newest).get("meta", {}).get("lasting", {}).get("photos a step") if newest else None
    return int(photos) if photos else None


def export(work_dir: Path) -> Path:
    """Export a run's best checkpoint, or the newest without validations, to `final.safetensors`. Works while the run is in progress."""
    chosen, why = newest_checkpoint(work_dir), ""
    if chosen is None:
        raise FileNotFoundError(f"{work_dir}: no checkpoint yet.")
    saved = _read(chosen)
    recorded, lasting = saved.get("message_hub", {}).get("runtime_info", {}), saved.get("meta", {}).get("lasting", {})
    best = work_dir / Path(recorded.get("best_ckpt", "")).name
    metric = lasting.get("best metric", "AP")
    if recorded.get("best_score", 0) > 0 and best.is_file():  # with 0 throughout the first one counts as the best
        chosen, why = best, f", the best measured ({metric} {per_cent(recorded['best_score'])})"
        recorded = _read(best)["message_hub"]["runtime_info"]
    path = work_dir / FINAL_NAME
    save_safetensors(load_checkpoint(chosen), path)
    steps = step_of(chosen.name)
    print(f"{path}: written{f' after {steps} steps' if steps else ''}{why}.", flush=True)
    if why:
        if "measured" in recorded:
            print(by_label_table(recorded["measured"]), flush=True)
    elif recorded.get("best_score", 0) > 0:
        print(f"{best}, the best measured, is gone: these are the last weights.", flush=True)
    elif lasting.get("--val"):
        print(f"{metric} is 0 so far: train for more steps, or with a higher --lr.", flush=True)
    return path


def _as_text(value: object) -> str:
    return {True: "given", False: "left out"}[value] if isinstance(value, bool) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        with harmless_types_only():
            return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # of any type, where the bytes are no pickle
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch seeks to before the beginning of a cut file
            raise
        before, reason = _last_saved(path.parent, but=path), str(error).partition("\n")[0]
        remedy = f"Move it away: --resume then continues from {before.name}" if before else "Start a new run in another folder"
        raise ValueError(f"{path}: not a whole checkpoint ({reason}). {remedy}.") from error
