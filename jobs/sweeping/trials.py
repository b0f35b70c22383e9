"""The trials of a sweep, each a training run in a process of Ray Tune; their table and plot."""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import argparse
import csv
import os
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib as mpl
import ray
from matplotlib.figure import Figure
from mmengine.hooks import Hook
from mmengine.runner import Runner
from ray import tune
from ray.tune.result_grid import ResultGrid
from ray.tune.search.basic_variant import BasicVariantGenerator

from jobs.atomic_write import atomic_file
from jobs.command_line import Terminated
from jobs.ray_session import connect
from jobs.sweeping.search_space import LOG_SCALE_FROM, TABLE, Range, Values, checked_values, point_as_given, trial_settings
from jobs.training.output.results import export
from jobs.training.run import finetune
from jobs.training.settings import FinetuneSettings

PLOT = "trials.png"
COMPLETED = "completed"
"""`ended` of a trial that made all its steps."""
ASHA_KEEPS = 3
"""ASHA's reduction factor: at each rung, the best third continues."""


class ReportToTune(Hook):
    """Tells Ray Tune of each measurement.

    Args:
        metric: that trials are compared by.
    """

    priority = "VERY_LOW"  # after the checkpoint of the best measurement is written

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Report the number, the step, and the most memory that this process has held."""
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        tune.report({self._metric: float((metrics or {})[self._metric]), "step": runner.iter, "peak_gb": peak_gb})


def run_trials(
    args: argparse.Namespace,
    of_finetune: Sequence[str],
    space: Mapping[str, Values],
    settings: FinetuneSettings,
    copies: Mapping[str, str],
) -> str | None:
    """Run them all, write the table and the plot; returns what to say of the best, None if none has found anything.

    Args:
        copies: of `jobs.training.run.read_sets`, so that the trials do not decode the photos again.
    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM (Terminated) ended the trials; the table and the plot have those that there were.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would not say that it was ended
    work_dir, metric = settings.work_dir.resolve(), settings.best_metric
    work_dir.mkdir(parents=True, exist_ok=True)
    as_given = point_as_given(of_finetune, space)
    print(
        f"The first trial has the settings as given: {_listed(as_given)}."
        if as_given
        else "No trial has the settings as given: --vary excludes them.",
        flush=True,
    )
    connect(log_to_driver=False)
    try:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_train, of_finetune=list(of_finetune), work_dir=work_dir, cwd=Path.cwd(), copies=copies),
                _resources(args),
            ),
            param_space={name: _domain(values) for name, values in space.items()},
            tune_config=_tune_config(args, of_finetune, space, as_given, settings),
            run_config=tune.RunConfig(name="ray", storage_path=str(work_dir), verbose=1),
        )
        with ending_on_signals() as signals:
            results = tuner.fit()
    finally:
        ray.shutdown()
    rows = rows_of(results, metric, of_finetune, work_dir)
    if signals and not rows:
        raise _interrupt(signals[0], "interrupted before the first trial")
    with atomic_file(work_dir / TABLE) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    with atomic_file(work_dir / PLOT) as draft:
        plot(results, rows, list(space), metric, draft)
    print(
        f"{work_dir / TABLE}, {work_dir / PLOT}: {len(rows)} trials, {sum(row['ended'] != COMPLETED for row in rows)} of them not completed"
    )
    best = _best(rows, metric, list(space), as_given)
    if signals:
        raise _interrupt(signals[0], f"interrupted. {best or 'No trial had found anything'}")
    return best


@contextmanager
def ending_on_signals() -> Iterator[list[signal.Signals]]:
    """Within: the first Ctrl-C or SIGTERM ends Ray Tune's run with the results so far; the second ends it at once.

    Tune's own way to end is SIGUSR1: what it calls then is called here.

    Yields: a list that gets the signal, when one comes.
    """
    came: list[signal.Signals] = []

    def end_trials(number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt (Terminated on SIGTERM) at a second signal, or while Tune does not listen yet."""
        end_tune = signal.getsignal(signal.SIGUSR1)
        if came or not callable(end_tune):  # it is not listening yet
            raise _interrupt(signal.Signals(number))
        came.append(signal.Signals(number))
        end_tune(number, frame)

    before = {number: signal.signal(number, end_trials) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: signal.Signals, *said: str) -> KeyboardInterrupt:
    return (Terminated if number == signal.SIGTERM else KeyboardInterrupt)(*said)


def _train(config: dict[str, Any], of_finetune: list[str], work_dir: Path, cwd: Path, copies: Mapping[str, str]) -> None:
    """A trial, in its own process. Tune starts it in a folder of the trial; relative paths are of the command's folder."""
    if cwd.is_dir():
        os.chdir(cwd)
    settings = trial_settings(of_finetune, config)
    trial = tune.get_context().get_trial_id()
    with known_warnings_ignored():
        finetune(replace(settings, work_dir=work_dir / trial), [ReportToTune(settings.best_metric)], copies)


def _domain(values: Values) -> Any:
    if not isinstance(values, Range):
        return tune.choice(values)
    low, high = values.low, values.high
    if isinstance(low, float) or isinstance(high, float):
        return tune.loguniform(low, high) if values.is_log else tune.uniform(low, high)
    if values.step > 1:
        return tune.qrandint(low, high, values.step)
    return tune.lograndint(low, high + 1) if values.is_log else tune.randint(low, high + 1)


def _tune_config(
    args: argparse.Namespace,
    of_finetune: Sequence[str],
    space: Mapping[str, Values],
    as_given: dict[str, Any] | None,
    settings: FinetuneSettings,
) -> tune.TuneConfig:
    first_points = [as_given] if as_given else None
    search: Any = BasicVariantGenerator(random_state=settings.seed, points_to_evaluate=first_points)
    if args.search == "bayes":
        from ray.tune.search.optuna import OptunaSearch

        search = OptunaSearch(seed=settings.seed, points_to_evaluate=first_points)
    scheduler = None
    if args.asha:
        first = trial_settings(of_finetune, {})
        most = max([first.steps or 0, *map(int, checked_values(space.get("steps", [])))])
        scheduler = tune.schedulers.ASHAScheduler(
            "step", max_t=most, grace_period=first.val_every or 1, reduction_factor=ASHA_KEEPS
        )
    return tune.TuneConfig(
        metric=settings.best_metric, mode="max", num_samples=args.trials, search_alg=search, scheduler=scheduler
    )


def _resources(args: argparse.Namespace) -> dict[str, float]:
    """Resources of a trial; prints them, and how many trials run concurrently."""
    has = ray.cluster_resources()
    gpus = args.gpus_per_trial if args.gpus_per_trial is not None else min(has.get("GPU", 0), 1)
    cpus = args.cpus_per_trial or max(has["CPU"] / max(has.get("GPU", 0) / gpus, 1) if gpus else has["CPU"], 1)
    asked = {"cpu": cpus, "gpu": gpus, "memory": args.memory_gb_per_trial * 1e9}
    room = min(
        int(has.get(name, 0) / asked[key]) for key, name in (("cpu", "CPU"), ("gpu", "GPU"), ("memory", "memory")) if asked[key]
    )
    memory = (
        f"{args.memory_gb_per_trial:g} GB reserved" if args.memory_gb_per_trial else "memory not reserved (--memory-gb-per-trial)"
    )
    print(f"Each trial: {cpus:g} CPUs, {gpus:g} GPUs, {memory}; {room} at once.", flush=True)
    return {name: value for name, value in asked.items() if value}


def rows_of(results: ResultGrid, metric: str, of_finetune: Sequence[str], work_dir: Path) -> list[dict[str, Any]]:
    """A row for each trial, the best first."""
    rows = []
    for result in (results[number] for number in range(len(results))):
        config, planned = result.config or {}, trial_settings(of_finetune, result.config or {}).steps or 0
        history, last = result.metrics_dataframe, result.metrics or {}
        measured = [] if history is None or metric not in history else history[metric].tolist()
        error = str(result.error).strip().splitlines()[-1] if result.error else ""
        rows.append(
            {
                "trial": last.get("trial_id", ""),
                metric: max(measured, default=0.0),
                **config,
                "ended": error or ("stopped early" if last.get("step", 0) < planned else COMPLETED),
                "steps": last.get("step", 0),
                "seconds": round(last.get("time_total_s", 0)),
                "peak_gb": round(last.get("peak_gb", 0), 2),
                "work_dir": str(work_dir / last["trial_id"]) if "trial_id" in last else "",
            }
        )
    return sorted(rows, key=lambda row: -row[metric])


def plot(results: ResultGrid, rows: list[dict[str, Any]], names: list[str], metric: str, path: Path) -> None:
    """The measurement over the steps of each trial; the best of each over each setting that was varied."""
    figure = Figure(figsize=(4 * (1 + len(names)), 3.6), layout="constrained")
    over_steps, *over_settings = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    for result in (results[number] for number in range(len(results))):
        history = result.metrics_dataframe
        if history is not None and metric in history:
            over_steps.plot(history["step"], history[metric], marker=".", label=(result.metrics or {}).get("trial_id"))
    over_steps.set(xlabel="step", ylabel=metric, title="trials")
    for axes, name in zip(over_settings, names, strict=True):
        values = [row[name] for row in rows]
        numbers = all(isinstance(value, int | float) for value in values)
        axes.plot(values if numbers else [str(value) for value in values], [row[metric] for row in rows], "o")
        if numbers and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM:
            axes.set_xscale("log")
        axes.set(xlabel=name)
    with mpl.rc_context({"savefig.dpi": 120}):
        figure.savefig(path)


def _best(rows: list[dict[str, Any]], metric: str, names: list[str], as_given: dict[str, Any] | None) -> str | None:
    best = rows[0]
    if not best[metric] > 0:
        return None
    model = export(Path(best["work_dir"]))  # of a trial that was stopped, too
    given = next((row for row in rows if as_given and as_given.items() <= row.items()), None)
    beside = f" (the settings as given: {given[metric]:.4f})" if given else ""
    return f"Best: {metric} {best[metric]:.4f}{beside} with {_listed({name: best[name] for name in names})}: {model}"


def _listed(point: dict[str, Any]) -> str:
    """`lr 0.002, mosaic 0.5`."""
    return ", ".join(f"{name} {value}" for name, value in point.items())
