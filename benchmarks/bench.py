"""Speed and memory of the pipeline beside mmdet's own way, on the same photos, weights and cores, in one run.

    python -m benchmarks.bench [--quick] [--rounds 3] [--images folder] [--memory-gb 14] [--output folder] [--plot docs/bench.png]

    ceiling ─▶ encoded photo to JSON, stage by stage: ours │ ours in fp32 │ mmdet, in turns ─▶ peak memory, in child processes
            ─▶ RTMDet-Ins-x beside the matrix peak ─▶ images/s by batch ─▶ the same on a CUDA card, where there is one

Prints tables and, last, one line of JSON. No Ray, no HTTP; `benchmarks.service_bench` measures the service. mmdet takes 13 GB for
100 masks at 12 megapixels: `--memory-gb` says what it may have, and where that is less, both contestants keep fewer instances.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks import bench_report as report
from benchmarks.bench_ceiling import Ceiling
from benchmarks.bench_compare import Setting, compare, instances_that_fit, settings
from benchmarks.bench_cuda import measure_and_print
from benchmarks.bench_memory import Memory, measure_memory
from benchmarks.bench_network import measure_throughput, measure_utilisation
from benchmarks.bench_photos import LARGE_WH, SMALL_WH, bench_photos, largest_photo
from loadtest.machine import describe_machine

SHARE_OF_FREE_MEMORY = 0.7
"""What mmdet may have of the memory that is free now, unless `--memory-gb` says otherwise."""

UTILISATION_BATCHES = (1, 8)
"""Images a pass where the share of the matrix peak is measured: all threads on one image, and streams that do not wait."""

PARTS = ("compare", "memory", "peak", "throughput", "cuda")
QUICK_PARTS = ("compare", "throughput", "cuda")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        settings: of the comparison; empty measures none.
        rounds: repeats of everything.
        seconds: of each engine measurement in each round.
        largest: model whose share of the matrix peak is measured; None measures none.
        throughput: models whose images/s are measured.
        memory_instances: most instances in the memory measurements, half as many and all of them; 0 measures none.
        cuda: whether to look for a card.
        images: folder of photos; None makes them of matplotlib's.
        plots: PNGs to write of the comparison.
    """

    settings: tuple[Setting, ...]
    rounds: int
    seconds: float
    largest: str | None
    throughput: tuple[str, ...]
    memory_instances: int
    cuda: bool
    images: Path | None
    plots: tuple[Path, ...]


def run(plan: Plan) -> dict[str, object]:
    """Measure what the plan says, printing as it goes; returns everything as JSON-ready facts."""
    ceiling, facts = Ceiling(), {"machine": describe_machine()}
    ceiling.measure()
    print("\n".join(ceiling.as_lines()), flush=True)
    compared = [
        compare(setting, bench_photos(plan.images, setting.photos, setting.size_wh), plan.rounds, ceiling.measure)
        for setting in plan.settings
    ]
    _show(report.compared_lines(compared) if compared else [])
    for path in plan.plots if compared else ():
        report.plot_compared(compared, path)
    memory = _memory(plan)
    _show(report.memory_lines(memory) if memory else [])
    (small,) = bench_photos(plan.images, 1, SMALL_WH)
    batches = UTILISATION_BATCHES if plan.largest else ()
    largest = [measure_utilisation(str(plan.largest), small, ceiling, plan.rounds, plan.seconds, batch) for batch in batches]
    for measured in largest:
        _show(report.utilisation_lines(measured))
    throughput = measure_throughput(plan.throughput, small, plan.rounds, plan.seconds)
    _show(report.throughput_lines(throughput) if throughput else [])
    return facts | {
        "rounds": plan.rounds,
        "images": str(plan.images) if plan.images else "grace_hopper",
        "ceiling": asdict(ceiling),
        "compared": [asdict(row) for row in compared],
        "memory": [asdict(row) for row in memory],
        "utilisation": [asdict(measured) for measured in largest],
        "throughput": throughput,
        "cuda": measure_and_print(plan.rounds, plan.seconds, photo=small) if plan.cuda else None,
        "load_average_after": describe_machine()["load_average"],
    }


def _memory(plan: Plan) -> list[Memory]:
    if not plan.memory_instances:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        photo, small = Path(scratch, "large.jpg"), Path(scratch, "small.jpg")
        photo.write_bytes(largest_photo(bench_photos(plan.images, 2, LARGE_WH)))
        small.write_bytes(bench_photos(plan.images, 1, SMALL_WH)[0])
        counts = sorted({max(1, plan.memory_instances // 2), plan.memory_instances})
        cases = [(way, count) for count in counts for way in ("mmdet", "ours")]
        if plan.memory_instances < 100:
            cases.append(("ours", 100))
        return [measure_memory(way, "tiny", 0.05, count, photo, small) for way, count in cases]


def _show(lines: Sequence[str]) -> None:
    if lines:
        print("", *lines, sep="\n", flush=True)


def plan_from(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    memory_bytes = args.memory_gb * 1e9 if args.memory_gb else SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available
    chosen = tuple(settings(2 if args.quick else args.photos, memory_bytes))
    instances = instances_that_fit(LARGE_WH, memory_bytes)
    if instances < 100:
        print(f"at 12 megapixels both keep {instances} instances: mmdet may have {memory_bytes / 1e9:.1f} GB (--memory-gb)")
    parts = args.only or (QUICK_PARTS if args.quick else PARTS)
    return Plan(
        settings=(chosen[::2] if args.quick else chosen) if "compare" in parts else (),
        rounds=1 if args.quick else args.rounds,
        seconds=0.5 if args.quick else args.seconds,
        largest="x" if "peak" in parts else None,
        throughput=(("nano",) if args.quick else ("nano", "tiny")) if "throughput" in parts else (),
        memory_instances=instances if "memory" in parts else 0,
        cuda="cuda" in parts,
        images=args.images,
        plots=tuple(path for path in (args.plot, args.output and args.output / "bench.png") if path),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, VGA only, no memory, no x: a minute or two")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=8, help="VGA photos; a quarter or half as many at 12 megapixels")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each engine measurement in each round")
    parser.add_argument("--images", type=Path, help="folder of photos to make the test photos of (default: matplotlib's photo)")
    parser.add_argument("--memory-gb", type=float, help="most memory for mmdet's masks, GB (default: 70 %% of what is free)")
    parser.add_argument("--output", type=Path, help="folder for bench.json and bench.png")
    parser.add_argument("--plot", type=Path, help="PNG to write, e.g. docs/bench.png")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # mmdet's, many
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    line = json.dumps(run(plan_from(args)))
    if args.output:
        (args.output / "bench.json").write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
