"""Prints metrics: tables in per cent, and the confusion matrix as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.evaluation.metrics_coco import STATISTICS

MAX_COLUMNS = 12
"""Most labels for which the confusion matrix is printed; with more, only the plot and the JSON have it."""
DOUBTFUL = 10
"""Fewest predictions that a doubt needs."""
SHOWN = ("average_precision", "precision", "recall")


def as_table(metrics: dict[str, Any]) -> str:
    """COCO's numbers, AzureML's, and the confusion matrix of masks; see `jobs.evaluate.measure`."""
    coco, azureml = metrics["coco"], metrics["azureml"]
    lines = _aligned(
        [["COCO", *STATISTICS]] + [[kind, *(_per_cent(coco[kind][name]) for name in STATISTICS)] for kind in ("box", "mask")]
    )
    per_label = coco["mask"]["per_label"]
    if len(per_label) > 1:
        longest = max(map(len, per_label))
        lines += ["mask AP by label", *(f"  {name.ljust(longest)}  {_per_cent(ap).rjust(5)}" for name, ap in per_label.items())]
    lines += ["", *_azureml_lines(azureml)]
    if not metrics["predictions"]:
        lines.append("there are no predictions")
    lines += _doubts(azureml)
    if metrics["crowds"]:
        lines.append(f"AzureML does not count predictions inside a crowd's box ({metrics['crowds']} crowds here)")
    return "\n".join(lines)


def _doubts(azureml: dict[str, Any]) -> list[str]:
    """What a fault in ids or coordinates looks like in the confusion matrix."""
    matrix = np.array(azureml["mask"]["confusion_matrices"][f"{azureml['score_threshold']:g}"])
    matched, right = matrix[:-1, :-1].sum(), matrix[:-1, :-1].trace()
    if matrix[:-1].any() and azureml["predictions"] >= DOUBTFUL and not matched:
        return [
            f"none of {azureml['predictions']:,} predictions overlaps an annotated object: are ids and pixels those of these "
            "annotations, and of upright photos?"
        ]
    if matched - right > max(right, DOUBTFUL):
        return [
            f"{matched - right:,} of {matched:,} matched predictions have another label than annotated: are category ids or names "
            "exchanged?"
        ]
    return []


def _azureml_lines(azureml: dict[str, Any]) -> list[str]:
    heads = ["AzureML", "mAP", "precision", "recall", "image-level AP", "precision", "recall"]
    rows = [heads]
    for kind in ("box", "mask"):
        numbers = azureml[kind]
        own = [numbers["mean_average_precision"], numbers["precision"], numbers["recall"]]
        rows.append([kind, *map(_per_cent, [*own, *(numbers["image_level"][name] for name in SHOWN)])])
    above, iou = azureml["score_threshold"], azureml["iou_threshold"]
    lines = [f"of {azureml['predictions']:,} predictions with a score above {above:g}, at IoU {iou:g}", *_aligned(rows)]
    if len(azureml["labels"]) > MAX_COLUMNS:
        return [*lines, "", "confusion matrix: more labels than fit here; --plot draws it"]
    heads = ["annotated \\ found", *azureml["labels"], "missed"]
    matrix = azureml["mask"]["confusion_matrices"][f"{above:g}"]
    named = zip([*azureml["labels"], "nothing there"], matrix, strict=True)
    return [*lines, "", *_aligned([heads, *([name, *map(str, row)] for name, row in named)])]


def write_confusion_plot(azureml: dict[str, Any], path: Path) -> None:
    """Write the confusion matrix of masks as PNG, each row in shares of its objects.

    Args:
        azureml: of `jobs.evaluation.metrics_azureml`.
    """
    from matplotlib.figure import Figure

    labels = azureml["labels"]
    matrix = np.array(azureml["mask"]["confusion_matrices"][f"{azureml['score_threshold']:g}"])
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * len(labels), 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels) + 1), [*labels, "missed"], rotation=90)
    axes.set_yticks(range(len(labels) + 1), [*labels, "nothing there"])
    axes.set_xlabel("found")
    axes.set_ylabel("annotated")
    axes.set_title(f"masks, score above {azureml['score_threshold']:g}, IoU {azureml['iou_threshold']:g}")
    for row, column in np.argwhere(matrix):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(path, format="png", dpi=120)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _per_cent(number: float | None) -> str:
    return "-" if number is None else f"{100 * number:.1f}"
