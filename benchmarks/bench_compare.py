"""The contestants in turn, all photos and then the next one, round by round, and what came out: medians, spreads, ratios.

A ratio is taken within a round, where both saw the same neighbours on the machine; its median and extremes are over rounds.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bench_photos import LARGE_WH, SMALL_WH
from benchmarks.bench_ways import STAGES, Answered, MmdetWay, OurWay, Way
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.zoo import locate
from pipeline.types import DetectOptions
from serve_app.settings import EMBEDDED_MODEL
from tests.support.seeded import seeded_checkpoint

Spread = tuple[float, float, float]
OURS, OURS_FP32, MMDET = "ours", "ours fp32", "mmdet"
MMDET_BYTES_A_SQUARE_PIXEL, MMDET_BYTES_A_PIXEL = 4, 5
"""Of every mask at once: float32 logits of the padded square at the photo's scale, then of the photo the sigmoid (float32) and
the mask (bool). mmdet 3.3.0 `_bbox_mask_post_process`."""
SPARE_BYTES = 1_000_000_000
"""Libraries, weights and everything else of a process, generously."""
PAUSE_S = 0.02
"""Between contestants: OpenMP's threads, mmdet's here, spin on for milliseconds after their last loop, at the cost of whoever comes next.
Measured without it: 2 ms of 12 of our network's time, and 8 ms of processor time booked to us."""


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
    """One setting's result; every pair is (median, lowest, highest) over the rounds.

    Args:
        title: of the setting.
        instances: mean rows an answer of `ours`; of mmdet: the same, up to rounding.
        ms: milliseconds a photo by contestant.
        stages_ms: median milliseconds by contestant and stage.
        times_faster: mmdet's time over ours.
        cpu_ms: processor milliseconds a photo, all threads.
        times_less_cpu: mmdet's processor time over ours.
        stages_times_faster: the same by stage, medians.
        moved: mean bytes handed on by contestant.
    """

    title: str
    instances: dict[str, float]
    ms: dict[str, Spread]
    stages_ms: dict[str, dict[str, float]]
    times_faster: dict[str, Spread]
    cpu_ms: dict[str, Spread]
    times_less_cpu: dict[str, Spread]
    stages_times_faster: dict[str, float]
    moved: dict[str, dict[str, int]]


def settings(photos: int, memory_bytes: float) -> list[Setting]:
    """What is compared, on `photos` VGA photos and fewer large ones, as far as the memory lets mmdet go."""
    few, many = max(1, photos // 4), photos
    large = instances_that_fit(LARGE_WH, memory_bytes)
    return [
        Setting("tiny", 0.05, SMALL_WH, many),
        Setting("tiny", 0.05, LARGE_WH, few, large),
        Setting("embedded", 0.3, SMALL_WH, many),
        Setting("embedded", 0.3, LARGE_WH, 2 * few, large),
    ]


def instances_that_fit(size_wh: tuple[int, int], memory_bytes: float) -> int:
    """At most 100, and no more than mmdet's full-size masks leave room for."""
    a_mask = MMDET_BYTES_A_SQUARE_PIXEL * max(size_wh) ** 2 + MMDET_BYTES_A_PIXEL * size_wh[0] * size_wh[1]
    return max(1, min(100, int((memory_bytes - SPARE_BYTES) / a_mask)))


def load_model(name: str) -> Checkpoint:
    """`embedded`, or a size (`nano`, `tiny` ... `x`) with seeded weights at 640 pixels."""
    if name == "embedded":
        return load_checkpoint(locate(EMBEDDED_MODEL))
    return seeded_checkpoint(name, 640)


def compare(setting: Setting, photos: Sequence[bytes], rounds: int, between: Callable[[], None]) -> Compared:
    """Measure one setting.

    Args:
        setting: what to measure.
        photos: encoded, `setting.photos` of them.
        rounds: how often everything is repeated.
        between: called before each round (the ceiling is measured there).
    """
    checkpoint, detect = load_model(setting.model), DetectOptions(setting.threshold, setting.max_detections)
    ways: dict[str, Way] = {
        OURS: OurWay(checkpoint, EngineOptions(device="cpu", max_batch=1), detect),
        OURS_FP32: OurWay(checkpoint, EngineOptions(device="cpu", precision="fp32", max_batch=1), detect),
        MMDET: MmdetWay(checkpoint, detect),
    }
    for way in ways.values():
        way.answer(photos[0])
    measured: dict[str, list[list[Answered]]] = {name: [] for name in ways}
    with _few_objects_to_look_through():
        for round_ in range(rounds):
            between()
            for name, way in ways.items():
                time.sleep(PAUSE_S)
                way.answer(photos[0])  # cores and caches are its own from here on
                measured[name].append([way.answer(photo) for photo in photos])
            print(f"{setting.title}: round {round_ + 1} of {rounds} done", file=sys.stderr)
    result = summarise(setting.title, measured)
    print(f"{setting.title}: mmdet {result.ms[MMDET][0]:.0f} ms, ours {result.ms[OURS][0]:.0f} ms", file=sys.stderr)
    return result


@contextmanager
def _few_objects_to_look_through() -> Iterator[None]:
    """Keep the garbage collector off what is there already, as Ray Serve does in a replica that has started.

    It looks through all of Python's objects at a moment of its choice; here, with mmdet's, that takes 190 ms of whoever answers.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def summarise(title: str, measured: Mapping[str, Sequence[Sequence[Answered]]]) -> Compared:
    """Rounds of answers by contestant to one result."""
    rounds_ms = {name: [_mean([a.total_s for a in answers]) * 1e3 for answers in rounds] for name, rounds in measured.items()}
    cpu_ms = {name: [_mean([a.cpu_s for a in answers]) * 1e3 for answers in rounds] for name, rounds in measured.items()}
    stages_ms = {
        name: {
            stage: statistics.median(_mean([a.stages_s[stage] for a in answers]) * 1e3 for answers in rounds) for stage in STAGES
        }
        for name, rounds in measured.items()
    }
    first = {name: rounds[0] for name, rounds in measured.items()}
    return Compared(
        title,
        {name: _mean([a.instances for a in answers]) for name, answers in first.items()},
        {name: spread(times) for name, times in rounds_ms.items()},
        stages_ms,
        _ratios(rounds_ms),
        {name: spread(times) for name, times in cpu_ms.items()},
        _ratios(cpu_ms),
        {stage: stages_ms[MMDET][stage] / max(stages_ms[OURS][stage], 1e-6) for stage in STAGES},
        {
            name: {key: round(_mean([a.moved[key] for a in answers])) for key in answers[0].moved}
            for name, answers in first.items()
        },
    )


def _ratios(rounds: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """mmdet's time over each other contestant's, round by round."""
    return {
        name: spread([theirs / ours for theirs, ours in zip(rounds[MMDET], times, strict=True)])
        for name, times in rounds.items()
        if name != MMDET
    }


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest, highest."""
    return statistics.median(values), min(values), max(values)


def as_range(values: Spread) -> str:
    """`median (lowest-highest)`."""
    median, low, high = map(as_number, values)
    return median if low == high else f"{median} ({low}-{high})"


def as_number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
