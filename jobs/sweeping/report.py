"""The table and the plot of a sweep: `trials.csv` and `trials.png`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from jobs.sweeping.search_space import LOG_SCALE_FROM, trial_settings

if TYPE_CHECKING:  # Ray Tune takes seconds to import, which a mistake in the arguments should not
    from ray.tune.result_grid import ResultGrid

TABLE, PLOT = "trials.csv", "trials.png"
COMPLETED = "completed"
"""`ended` of a trial that made all its steps."""


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


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """As CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


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
