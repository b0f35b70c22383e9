"""Compares mmdet with this pipeline, from the encoded photo to JSON, alternating on the same photos; run by `benchmarks.bench`."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Spread, as_number, as_range, ratios, spread, table, turns
from benchmarks.photos import LARGE_WH, SMALL_WH
from benchmarks.timed_pipelines import STAGES, Answered, MmdetPipeline, OurPipeline, Pipeline
from deployments.settings import EMBEDDED_MODEL
from jobs.command_line import print_progress
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.zoo import locate
from pipeline.types import DetectOptions
from tests.support.seeded import seeded_checkpoint

OURS, OURS_FP32, MMDET = "ours", "ours fp32", "mmdet"
COLOURS = dict(zip(STAGES, ("#7fb8d9", "#1673b1", "#e59f3c", "#8c5a99"), strict=True))
MMDET_BYTES_PER_SQUARE_PIXEL, MMDET_BYTES_PER_PIXEL = 4, 5
"""Memory that mmdet allocates for each mask: float32 logits of the padded square at the photo's scale, then the photo's sigmoid (float32)
and mask (bool). mmdet 3.3.0 `_bbox_mask_post_process`."""
SPARE_BYTES = 1_000_000_000
"""Upper estimate for libraries, weights and everything else of a process."""
PAUSE_S = 0.02
"""Pause between contestants, seconds: OpenMP's threads (mmdet's) spin for milliseconds after their last loop and slow down the next
contestant. Without it: 2 of 12 ms of our network's time, and 8 ms of CPU time wrongly counted as ours."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one row of the table is measured on.

    Args:
        model: `tiny` (seeded weights, some 100 instances) or `embedded`.
        threshold: of the score.
        size_wh: width and height of the photos, pixels.
        photos: how many, each answered once a round.
        max_detections: most instances, for both contestants.
    """

    model: str
    threshold: float
    size_wh: tuple[int, int]
    photos: int
    max_detections: int = 100

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.model} at {self.threshold:g}, {self.size_wh[0]}x{self.size_wh[1]}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One setting's result, by contestant; spreads are over the rounds.

    Args:
        title: of the setting.
        instances: mean rows of an answer.
        ms, cpu_ms: milliseconds a photo, and processor milliseconds of all threads.
        times_faster, times_less_cpu: mmdet's time over the contestant's.
        stages_ms: median milliseconds by stage.
        moved: mean bytes handed on.
    """

    title: str
    instances: dict[str, float]
    ms: dict[str, Spread]
    cpu_ms: dict[str, Spread]
    times_faster: dict[str, Spread]
    times_less_cpu: dict[str, Spread]
    stages_ms: dict[str, dict[str, float]]
    moved: dict[str, dict[str, int]]


def settings(photos: int, memory_bytes: float) -> list[Setting]:
    """What is compared, on `photos` VGA photos and fewer large ones, as far as the memory lets mmdet go."""
    few, large = max(1, photos // 4), instances_that_fit(LARGE_WH, memory_bytes)
    return [
        Setting("tiny", 0.05, SMALL_WH, photos),
        Setting("tiny", 0.05, LARGE_WH, few, large),
        Setting("embedded", 0.3, SMALL_WH, photos),
        Setting("embedded", 0.3, LARGE_WH, 2 * few, large),
    ]


def instances_that_fit(size_wh: tuple[int, int], memory_bytes: float) -> int:
    """At most 100, and no more than mmdet's full-size masks leave room for."""
    a_mask = MMDET_BYTES_PER_SQUARE_PIXEL * max(size_wh) ** 2 + MMDET_BYTES_PER_PIXEL * size_wh[0] * size_wh[1]
    return max(1, min(100, int((memory_bytes - SPARE_BYTES) / a_mask)))


def load_model(name: str) -> Checkpoint:
    """`embedded`, or a size (`nano`, `tiny` ... `x`) with seeded weights at 640 pixels."""
    if name == "embedded":
        return load_checkpoint(locate(EMBEDDED_MODEL))
    return seeded_checkpoint(name, 640)


def compare(setting: Setting, photos: Sequence[bytes], rounds: int, each_turn: Callable[[], object]) -> Compared:
    """Measure one setting.

    Args:
        setting: what to measure.
        photos: encoded, `setting.photos` of them.
        rounds: how often everything is repeated.
        each_turn: called before each contestant's turn (the ceiling is measured there).
    """
    checkpoint, detect = load_model(setting.model), DetectOptions(setting.threshold, setting.max_detections)
    pipelines: dict[str, Pipeline] = {
        OURS: OurPipeline(checkpoint, EngineOptions(device="cpu", max_batch=1), detect),
        OURS_FP32: OurPipeline(checkpoint, EngineOptions(device="cpu", precision="fp32", max_batch=1), detect),
        MMDET: MmdetPipeline(checkpoint, detect),
    }
    for pipeline in pipelines.values():
        pipeline.answer(photos[0])
    answers: dict[str, list[list[Answered]]] = {name: [] for name in pipelines}
    with _few_objects_to_look_through():
        for _, name in turns(list(pipelines), rounds):
            each_turn()
            time.sleep(PAUSE_S)
            pipelines[name].answer(photos[0])  # cores and caches are its own from here on
            answers[name].append([pipelines[name].answer(photo) for photo in photos])
    result = summarise(setting.title, answers)
    print_progress(f"{setting.title}: mmdet {result.ms[MMDET].median:.0f} ms, ours {result.ms[OURS].median:.0f} ms")
    return result


@contextmanager
def _few_objects_to_look_through() -> Iterator[None]:
    """Exclude all existing objects from garbage collection, as Ray Serve does in a replica that has started.

    A collection can start at any time and visits every tracked Python object; with mmdet's objects it takes 190 ms of the measured request.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def summarise(title: str, answers: Mapping[str, Sequence[Sequence[Answered]]]) -> Compared:
    """Rounds of answers by contestant to one result."""

    def rounds_of(name: str, value: Callable[[Answered], float]) -> list[float]:
        """A figure's mean over the photos, round by round."""
        return [statistics.fmean(map(value, round_)) for round_ in answers[name]]

    def stage_ms(name: str, stage: str) -> float:
        return statistics.median(rounds_of(name, lambda one: one.stages_s[stage] * 1e3))

    ms = {name: rounds_of(name, lambda one: one.total_s * 1e3) for name in answers}
    cpu_ms = {name: rounds_of(name, lambda one: one.cpu_s * 1e3) for name in answers}
    stages_ms = {name: {stage: stage_ms(name, stage) for stage in STAGES} for name in answers}
    first = {name: rounds[0] for name, rounds in answers.items()}
    return Compared(
        title,
        {name: statistics.fmean(one.instances for one in round_) for name, round_ in first.items()},
        {name: spread(times) for name, times in ms.items()},
        {name: spread(times) for name, times in cpu_ms.items()},
        {name: ratios(ms[MMDET], ms[name]) for name in answers if name != MMDET},
        {name: ratios(cpu_ms[MMDET], cpu_ms[name]) for name in answers if name != MMDET},
        stages_ms,
        {
            name: {key: round(statistics.fmean(one.moved[key] for one in round_)) for key in round_[0].moved}
            for name, round_ in first.items()
        },
    )


def as_tables(results: Sequence[Compared]) -> str:
    """The whole way, by stage, and the bytes handed on."""
    whole = [
        [
            row.title,
            f"{row.instances[OURS]:.0f}",
            as_range(row.ms[MMDET]),
            as_range(row.ms[OURS]),
            f"**{as_range(row.times_faster[OURS])}**",
            as_range(row.times_faster[OURS_FP32]),
            as_range(row.times_less_cpu[OURS]),
        ]
        for row in results
    ]
    head = [
        "encoded photo to JSON",
        "instances",
        "mmdet ms",
        "ours ms",
        "**times faster**",
        "ours in fp32",
        "times less CPU time",
    ]
    stages = [
        [row.title, *(f"{as_number(row.stages_ms[MMDET][stage])} / {as_number(row.stages_ms[OURS][stage])}" for stage in STAGES)]
        for row in results
    ]
    moved = [
        [row.title, *(f"{row.moved[MMDET][key] / 1e6:.3g} / {row.moved[OURS][key] / 1e6:.3g}" for key in row.moved[OURS])]
        for row in results
    ]
    return "\n\n".join(
        [
            table(head, whole),
            table(["ms by stage: mmdet / ours", *STAGES], stages),
            table(["MB handed on: mmdet / ours", *results[0].moved[OURS]], moved),
        ]
    )


def plot(results: Sequence[Compared], path: Path) -> None:
    """Stacked bars of milliseconds by stage, % of mmdet's whole."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.95 * len(results) + 1.6), layout="constrained")
    rows = [(row, name) for row in results for name in (MMDET, OURS)]
    positions = [i + i // 2 * 0.4 for i in range(len(rows))]
    for position, (row, name) in zip(positions, rows, strict=True):
        left = 0.0
        for stage in STAGES:
            share = row.stages_ms[name][stage] / row.ms[MMDET].median * 100
            axes.barh(position, share, left=left, color=COLOURS[stage], label=stage if position == 0 else None)
            left += share
        factor = f"  {row.times_faster[OURS].median:.1f}x faster" if name == OURS else ""
        axes.text(left + 0.6, position, f"{as_number(row.ms[name].median)} ms{factor}", va="center", fontsize=9)
    axes.set_yticks(positions, [f"{row.title}: {name}" for row, name in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 122), xlabel="time from encoded photo to JSON, % of mmdet's", title="mmdet and this pipeline, same cores")
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
