"""Shared by all benchmarks: repeating, summarising and printing measurements.

    turns (rounds, interleaved) ─▶ spread (median, lowest, highest), ratios within rounds ─▶ table ─▶ finish: one line of JSON, last

A ratio is taken within a round, where both contestants saw the same neighbours on the machine. An empty sample is None, never 0.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from jobs.command_line import print_progress
from loadtest.service.machine import describe_machine, print_results

MIN_PASSES = 3


class Spread(NamedTuple):
    """One figure over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of values, in their unit.

    Raises:
        StatisticsError: there is no value.
    """
    return Spread(statistics.median(values), min(values), max(values))


def spread_if_any(values: Sequence[float]) -> Spread | None:
    """`spread`; None for no values."""
    return spread(values) if values else None


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios of two contestants, round by round; both have one value per round.

    Raises:
        ValueError: another number of values.
        ZeroDivisionError: a denominator is 0.
    """
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round from 0, name): every name once a round, each round beginning with another one."""
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in (*names[first:], *names[:first]):
            yield round_, name
        print_progress(f"round {round_ + 1} of {rounds} done")


def passes_per_s(run: Callable[[], object], seconds: float, callers: int = 1) -> float:
    """Passes per second of all callers together, after a warm-up of two passes each; every caller makes MIN_PASSES at least.

    Every thread warms up by itself, because cuDNN caches its choice of algorithms per thread.

    Args:
        run: one pass; results are on the host when it returns.
        seconds: length of the measurement, without the warm-up.
        callers: threads that call concurrently.
    Raises:
        Exception: what `run` raised, in any of the callers.
    """
    warm = threading.Barrier(callers)

    def call() -> tuple[int, float, float]:
        """Passes of one caller, and when the first began and the last ended."""
        try:
            for _ in range(2):
                run()
            warm.wait()
        except threading.BrokenBarrierError:  # another caller failed, and its error is raised below
            return 0, 0.0, 0.0
        except BaseException:
            warm.abort()
            raise
        count, began = 0, time.perf_counter()
        while count < MIN_PASSES or time.perf_counter() - began < seconds:
            run()
            count += 1
        return count, began, time.perf_counter()

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call) for _ in range(callers)]
    counts, began, ended = zip(*(one.result() for one in calls), strict=True)
    return float(sum(counts) / (max(ended) - min(began)))


class ForeignLoad:
    """Measures the CPU that programs other than this one and its children use, from its creation on.

    Counted for the whole machine: programs in other containers or process namespaces, which a list of processes does not show, count too.
    """

    def __init__(self) -> None:
        self._began, self._used_s = time.perf_counter(), _foreign_cpu_s()

    def cores(self) -> float:
        """Cores in use, on average so far. Children that ended meanwhile count as foreign."""
        return max(0.0, (_foreign_cpu_s() - self._used_s) / (time.perf_counter() - self._began))


def _foreign_cpu_s() -> float:
    machine, own = psutil.cpu_times(), 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            own += times.user + times.system
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    # psutil: user and nice include guest and guest_nice
    return sum(machine) - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0) - idle - own


def as_number(value: float | None) -> str:
    """At least three significant digits; `-` for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_range(values: Spread | None) -> str:
    """`median (lowest to highest)`; `-` for None."""
    if values is None:
        return "-"
    median, low, high = map(as_number, values)
    return median if low == high else f"{median} ({low} to {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; every row has as many cells as the head."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def add_arguments(parser: argparse.ArgumentParser, seconds: float = 4.0, images: bool = True) -> None:
    """The options that benchmarks share; --images only where photos are measured."""
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each measurement (default: %(default)s)")
    if images:
        parser.add_argument("--images", type=Path, help="folder of photos (default: crops of matplotlib's photo)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the JSON here")


def finish(benchmark: str, facts: dict[str, Any], output: Path | None = None) -> None:
    """Print the results, with the benchmark and the machine, as one line of JSON; also write it to `output` if given.

    Raises:
        OSError: the file cannot be written.
        TypeError: a fact has no JSON.
    """
    print_results({"benchmark": benchmark, "machine": describe_machine()} | facts, output)
