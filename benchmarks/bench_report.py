"""What `benchmarks.bench` prints and draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.bench_compare import MMDET, OURS, OURS_FP32, Compared, Spread, as_number, as_range
from benchmarks.bench_memory import Memory
from benchmarks.bench_network import Utilisation
from benchmarks.bench_ways import STAGES

COLOURS = dict(zip(STAGES, ("#7fb8d9", "#1673b1", "#e59f3c", "#8c5a99"), strict=True))


def compared_lines(results: Sequence[Compared]) -> list[str]:
    """Whole path, then by stage, as markdown."""
    lines = [
        "| encoded photo to JSON | instances | mmdet ms | ours ms | **times faster** | ours in fp32 | times less CPU time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row.title} | {row.instances[OURS]:.0f} | {as_range(row.ms[MMDET])} | {as_range(row.ms[OURS])} "
            f"| **{as_range(row.times_faster[OURS])}** | {as_range(row.times_faster[OURS_FP32])} "
            f"| {as_range(row.times_less_cpu[OURS])} |"
        )
    lines += ["", f"| ms by stage: mmdet / ours | {' | '.join(STAGES)} |", "|---|" + "---|" * len(STAGES)]
    for row in results:
        cells = (f"{as_number(row.stages_ms[MMDET][stage])} / {as_number(row.stages_ms[OURS][stage])}" for stage in STAGES)
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines += ["", "| MB handed on: mmdet / ours | encoded | pixels | masks | JSON |", "|---|---|---|---|---|"]
    for row in results:
        theirs, ours = row.moved[MMDET], row.moved[OURS]
        lines.append(f"| {row.title} | " + " | ".join(f"{theirs[key] / 1e6:.3g} / {ours[key] / 1e6:.3g}" for key in ours) + " |")
    return lines


def memory_lines(results: Iterable[Memory]) -> list[str]:
    """Peak memory by contestant."""
    lines = ["| peak memory at 12 megapixels | instances | grown by, MB | process in all, MB |", "|---|---|---|---|"]
    return lines + [f"| {m.way} | {m.instances} | {m.grown_mb:,.0f} | {m.peak_mb:,.0f} |" for m in results]


def utilisation_lines(result: Utilisation) -> list[str]:
    """Share of the matrix peak, and where the network's time goes."""
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in list(result.time_by_kind.items())[:8])
    return [
        f"RTMDet-Ins-{result.model}, {result.precision}, batch {result.batch}, {result.instances:.0f} instances: "
        f"{as_range(result.ms)} ms with post-processing, {as_number(result.network_ms)} ms without; "
        f"{result.gflop:.1f} G operations (mmdet's network: {result.mmdet_gflop:.1f})",
        f"share of the {result.precision} matrix peak: {' '.join(f'{share:.0%}' for share in result.of_peak)} "
        f"(median, lowest, highest) with post-processing, {result.network_of_peak:.0%} without",
        f"the network's time by layer: {kinds}",
    ]


def throughput_lines(rates: dict[str, dict[str, Spread]]) -> list[str]:
    """Images/s by model and batch."""
    lines = ["| engine alone, images/s | batch 1 | batch 8 |", "|---|---|---|"]
    return lines + [
        f"| {model} | {' | '.join(as_range(rate) for rate in by_batch.values())} |" for model, by_batch in rates.items()
    ]


def plot_compared(results: Sequence[Compared], path: Path) -> None:
    """Stacked bars of milliseconds by stage; each setting's bars are drawn relative to mmdet's whole."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.95 * len(results) + 1.6), layout="constrained")
    rows = [(row, name) for row in results for name in (MMDET, OURS)]
    for place, (row, name) in enumerate(rows):
        left, whole = 0.0, row.ms[MMDET][0]
        for stage in STAGES:
            share = row.stages_ms[name][stage] / whole * 100
            axes.barh(place + place // 2 * 0.4, share, left=left, color=COLOURS[stage], label=stage if place == 0 else None)
            left += share
        factor = f"  {row.times_faster[OURS][0]:.1f}x faster" if name == OURS else ""
        axes.text(left + 0.6, place + place // 2 * 0.4, f"{as_number(row.ms[name][0])} ms{factor}", va="center", fontsize=9)
    axes.set_yticks([i + i // 2 * 0.4 for i in range(len(rows))], [f"{row.title}: {name}" for row, name in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 122), xlabel="time from encoded photo to JSON, % of mmdet's", title="mmdet and this pipeline, same cores")
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
