"""Plots shared by several reports: resources over time, and histograms."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Sample = dict[str, Any]
"""A loadtest.service.watch.Sample as JSON has it."""

SMALL_CORES, SMALL_MB = 0.02, 20.0
"""Parts that always stay below this are drawn together, as `rest`."""


def figure(width: float, height: float) -> Figure:
    """A figure that needs no display."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def as_png(drawn: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_replicas(axes: Axes, samples: Sequence[Sample]) -> None:
    """Replicas of each stage over time."""
    for stage in _names(samples, "replicas"):
        axes.step(_times(samples), [sample["replicas"].get(stage, 0) for sample in samples], where="post", label=stage)
    axes.set(title="Replicas", xlabel="s", ylabel="processes")
    axes.set_ylim(bottom=0)
    _legend(axes)


def draw_cores(axes: Axes, samples: Sequence[Sample]) -> None:
    """CPU by part over time, stacked."""
    _stack(axes, samples[1:], "cores", SMALL_CORES)
    axes.set(title="CPU by part", xlabel="s", ylabel="cores")
    _legend(axes)


def draw_memory(axes: Axes, samples: Sequence[Sample]) -> None:
    """Memory by part over time, stacked."""
    _stack(axes, samples, "memory_mb", SMALL_MB)
    axes.set(title="Memory by part (resident, not shared)", xlabel="s", ylabel="MB")
    _legend(axes)


def draw_histogram(axes: Axes, counts: Sequence[tuple[float, int]], title: str, unit: str) -> None:
    """Bars of (upper end of the bucket, count), empty ends left out."""
    used = [index for index, (_, count) in enumerate(counts) if count]
    shown = counts[used[0] : used[-1] + 1] if used else []
    axes.bar(range(len(shown)), [count for _, count in shown])
    axes.set_xticks(range(len(shown)), [f"≤ {end:g}" if end != float("inf") else "more" for end, _ in shown], rotation=45)
    axes.set(title=title, xlabel=unit, ylabel="count")


def _stack(axes: Axes, samples: Sequence[Sample], key: str, small: float) -> None:
    names = _names(samples, key)
    large = [name for name in names if max(sample[key].get(name, 0.0) for sample in samples) >= small]
    rows = [[sample[key].get(name, 0.0) for sample in samples] for name in large]
    rest = [sum(sample[key].values()) - sum(row[i] for row in rows) for i, sample in enumerate(samples)]
    if samples:
        colours = colormaps["tab20"].colors  # type: ignore[attr-defined]  # a ListedColormap
        axes.stackplot(_times(samples), *rows, rest, labels=[*large, "rest"], colors=colours)


def _names(samples: Sequence[Sample], key: str) -> list[str]:
    return list(dict.fromkeys(name for sample in samples for name in sample[key]))


def _times(samples: Sequence[Sample]) -> list[float]:
    return [sample["at_s"] for sample in samples]


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
