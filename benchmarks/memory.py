"""Measures the peak memory of scoring one photo, each contestant in a process of its own.

    python -m benchmarks.memory ours|mmdet PHOTO.jpg VGA.jpg --model tiny --threshold 0.05 --instances 100

The child loads its model, answers a VGA photo to be warm, gives freed memory back, resets the kernel's high-water mark, answers
the photo, and prints what it grew by beyond what it held before, and its highest size in all. Resident pages only: what is
reserved but never touched costs nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import table

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"  # proc(5), /proc/pid/clear_refs


@dataclass(frozen=True, slots=True)
class Memory:
    """One child's finding.

    Args:
        way: `ours` or `mmdet`.
        instances: rows in its answer.
        grown_mb: highest resident size while it answered, less the size before, MB (1e6 bytes).
        peak_mb: highest resident size while it answered, libraries and weights included, MB.
    """

    way: str
    instances: int
    grown_mb: float
    peak_mb: float


def measure_memory(way: str, model: str, threshold: float, instances: int, photo: Path, small: Path) -> Memory:
    """Start a child and read what it prints last.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", way, str(photo), str(small)]
    command += ["--model", model, "--threshold", str(threshold), "--instances", str(instances)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-800:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def as_table(results: Iterable[Memory]) -> str:
    """Peak memory by contestant."""
    rows = [[m.way, str(m.instances), f"{m.grown_mb:,.0f}", f"{m.peak_mb:,.0f}"] for m in results]
    return table(["peak memory at 12 megapixels", "instances", "grown by, MB", "process in all, MB"], rows)


def _measure_here(args: argparse.Namespace) -> Memory:
    from benchmarks.compare import load_model
    from benchmarks.timed_pipelines import MmdetPipeline, OurPipeline, Pipeline
    from pipeline.inference.engine import EngineOptions
    from pipeline.types import DetectOptions

    detect, checkpoint = DetectOptions(args.threshold, args.instances), load_model(args.model)
    contestant: Pipeline = (
        OurPipeline(checkpoint, EngineOptions(device="cpu", max_batch=1), detect)
        if args.way == "ours"
        else MmdetPipeline(checkpoint, detect)
    )
    contestant.answer(args.small.read_bytes())
    photo = args.photo.read_bytes()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    before = _status_mb("VmRSS")
    answered = contestant.answer(photo)
    peak = _status_mb("VmHWM")
    return Memory(args.way, answered.instances, round(peak - before, 1), round(peak, 1))


def _status_mb(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_STATUS} has no {name}")
    return int(found[1]) * 1024 / 1e6


def main() -> int:
    """The child's command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("way", choices=["ours", "mmdet"])
    parser.add_argument("photo", type=Path)
    parser.add_argument("small", type=Path, help="VGA photo to warm up with")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threshold", type=float, default=0.05)
    parser.add_argument("--instances", type=int, default=100)
    print(json.dumps(asdict(_measure_here(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
