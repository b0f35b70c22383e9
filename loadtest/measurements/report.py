"""Reports of results: a table, a PNG and one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from jobs import html_page
from jobs.command_line import CommandFault
from loadtest.measurements import plots

Results = dict[str, Any]
Row = dict[str, Any]

COLUMNS = {
    "offered/s": "offered_per_s",
    "queries": "queries",
    "ok": "ok",
    "p50 ms": "p50_ms",
    "p90 ms": "p90_ms",
    "p99 ms": "p99_ms",
    "missed": "missed",
    "images/s": "images_per_s",
    "refused p99 ms": "refused_p99_ms",
    "client lag p99 ms": "send_lag_p99_ms",
}
"""Columns of the tables, and the fields of a Summary that they show."""


def read_results(path: Path) -> Results:
    """A results.json of `python -m loadtest run --output`.

    Raises:
        CommandFault: the file holds something else.
    """
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        as_table(results)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandFault(f"{path} holds no results; `python -m loadtest run --output DIR` writes results.json") from error
    return results


def write_report(results: Results, folder: Path) -> None:
    """Write results.json, report.png and report.html into a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    png = as_png(results)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "report.png").write_bytes(png)
    (folder / "report.html").write_text(as_html(results, png), encoding="utf-8")


def headline(results: Results) -> str:
    """The result in one sentence."""
    result = results["result"]
    if result["scenario"] != "server":
        rate = result["summary"]["images_per_s"]
        return f"{result['scenario']}: {_number(rate)} images/s, p50 {_number(result['summary']['p50_ms'])} ms"
    bound, finished = f"p99 under {result['bound_p99_ms']:g} ms", result.get("finished", True)
    doubt = "" if finished else ", not confirmed: the search ran out of time"
    if result["rate_per_s"] is None:
        return f"server: no rate held {bound}{doubt}"
    rates = f"{_number(result['rate_per_s'])} requests/s ({_number(result['images_per_s'])} images/s)"
    return f"server: {'' if finished else 'at least '}{rates} with {bound}{doubt}"


def rows_of(results: Results) -> list[Row]:
    """A row for every trial, by rate; for other scenarios their only summary."""
    result = results["result"]
    trials = result["trials"] if result["scenario"] == "server" else [result["summary"]]
    return sorted(trials, key=lambda trial: trial["offered_per_s"] or 0.0)


def as_table(results: Results) -> str:
    """Headline and trials, for a terminal."""
    lines = [headline(results), "  ".join(COLUMNS) + "  outcomes"]
    for row in rows_of(results):
        cells = (_number(row[key]).rjust(len(name)) for name, key in COLUMNS.items())
        lines.append(f"{'  '.join(cells)}  {_outcomes(row)}")
    return "\n".join(lines)


def as_html(results: Results, png: bytes) -> str:
    """The HTML page."""
    rows = [[*(_number(row[key]) for key in COLUMNS.values()), _outcomes(row)] for row in rows_of(results)]
    facts = {name: results.get(name) for name in ("machine", "service", "images", "seed", "seconds_per_trial")}
    return html_page.page(
        headline(results),
        [
            html_page.picture_file(png, "image/png", "Latency against rate, time by stage"),
            html_page.paragraph(
                "Latency counts from the scheduled send time. 'missed' is the share of queries that failed or were late."
            ),
            html_page.table((*COLUMNS, "outcomes"), rows),
            *_watched_html(results),
            html_page.heading("Measured on"),
            html_page.text_block(json.dumps(facts, indent=1)),
        ],
    )


def _outcomes(row: Row) -> str:
    return ", ".join(f"{name} {count}" for name, count in row["outcomes"].items())


def _watched_html(results: Results) -> Iterator[str]:
    """Stages as Prometheus counted them."""
    if watched := results.get("watched"):
        stages = watched["stages"].items()
        rows = [(name, stage["images"], _number(stage["p50_ms"]), _number(stage["p99_ms"])) for name, stage in stages]
        yield html_page.heading("Stages, from the service's metrics over the whole run")
        yield html_page.table(("stage", "images", "p50 ms", "p99 ms"), rows)
        yield html_page.paragraph(f"Images in a pass of the network: {_number(watched['batches']['mean'])} on average.")


def as_png(results: Results) -> bytes:
    """Latency against rate and time by stage; where the service was watched also its batches, replicas, CPU and memory."""
    watched = results.get("watched")
    figure = plots.figure(22, 9) if watched else plots.figure(12, 4.5)
    axes = iter(figure.subplots(2, 4).flat if watched else figure.subplots(1, 2))
    rows = rows_of(results)
    _draw_latency(next(axes), rows, results["result"].get("bound_p99_ms"))
    _draw_stages(next(axes), rows)
    if watched:
        batches = watched["batches"]
        mean = f", mean {batches['mean']:.1f}" if batches["mean"] else ""
        plots.draw_histogram(next(axes), batches["sizes"], f"Passes of the network by size{mean}", "images")
        plots.draw_histogram(next(axes), batches["waits_ms"], "Wait for a batch", "ms")
        _draw_latencies(next(axes), watched["stages"])
        plots.draw_replicas(next(axes), watched["samples"])
        plots.draw_cores(next(axes), watched["samples"])
        plots.draw_memory(next(axes), watched["samples"])
    return plots.as_png(figure)


def _draw_latencies(axes: Axes, stages: dict[str, Row]) -> None:
    """Quantiles of the stages' own histograms: what Prometheus sees."""
    positions = range(len(stages))
    for offset, key in ((-0.2, "p50_ms"), (0.2, "p99_ms")):
        axes.bar(
            [position + offset for position in positions],
            [math.nan if stage[key] is None else stage[key] for stage in stages.values()],
            0.4,
            label=key[:3],
        )
    axes.set_xticks(positions, list(stages))
    axes.set(title="Latency by stage (Prometheus)", ylabel="ms")
    axes.legend()


def _draw_latency(axes: Axes, rows: list[Row], bound_ms: float | None) -> None:
    for key, marker in (("p50_ms", "o"), ("p90_ms", "s"), ("p99_ms", "^")):
        points = [(row["offered_per_s"] or 0.0, row[key]) for row in rows if row[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=key[:3])
    if bound_ms is not None:
        axes.axhline(bound_ms, color="grey", linestyle="--", label=f"bound {bound_ms:g} ms")
    axes.set(title="Latency against rate (answered queries)", xlabel="offered, requests/s", ylabel="ms")
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw_stages(axes: Axes, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["stages_ms"]))
    positions = range(len(rows))
    bottoms = [0.0] * len(rows)
    for name in names:
        heights = [row["stages_ms"].get(name, 0.0) for row in rows]
        axes.bar(positions, heights, bottom=bottoms, label=name)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(positions, [_number(row["offered_per_s"]) for row in rows], rotation=45)
    axes.set(title="Time by stage (mean, server-timing)", xlabel="offered, requests/s", ylabel="ms")
    if names:
        axes.legend()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
