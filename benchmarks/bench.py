"""Compares speed and memory of the pipeline with mmdet's, on the same photos, weights and cores, in one run.

    python -m benchmarks.bench [--quick] [--rounds 3] [--images folder] [--memory-gb 14] [--output FILE.json] [--plot docs/bench.png]

    ceiling ─▶ encoded photo to JSON, stage by stage: ours │ ours in fp32 │ mmdet, in turns ─▶ peak memory, in child processes
            ─▶ RTMDet-Ins-x beside the matrix peak ─▶ images/s by batch ─▶ the same on a GPU, if there is one

Prints tables and, last, one line of JSON. No Ray, no HTTP; `benchmarks.service_bench` measures the service. mmdet takes 13 GB for
100 masks at 12 megapixels: `--memory-gb` is its limit; if that is less, both contestants keep fewer instances.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks import compare, measure, memory, network
from benchmarks.bench_cuda import measure_and_print
from benchmarks.ceiling import Ceiling
from benchmarks.photos import LARGE_WH, SMALL_WH, bench_photos

SHARE_OF_FREE_MEMORY = 0.7
"""Share of the free memory that mmdet may use, unless `--memory-gb` is given."""
UTILISATION_BATCHES = (1, 8)
"""Batch sizes for which the share of the matrix peak is measured: all threads on one image, and one image per stream."""
LARGEST = "x"


def run_compare(args: argparse.Namespace, ceiling: Ceiling) -> list[dict[str, Any]]:
    """Photo to JSON, both ways."""
    settings = compare.settings(args.photos, memory_for_mmdet(args))[:: 2 if args.quick else 1]
    results = [
        compare.compare(setting, bench_photos(args.images, setting.photos, setting.size_wh), args.rounds, ceiling.measure)
        for setting in settings
    ]
    show(compare.as_tables(results))
    if args.plot:
        compare.plot(results, args.plot)
    return [asdict(result) for result in results]


def run_memory(args: argparse.Namespace, _: Ceiling) -> list[dict[str, Any]]:
    """Peak memory of each way, with half as many instances as fit and all of them."""
    most = compare.instances_that_fit(LARGE_WH, memory_for_mmdet(args))
    cases = [(way, count) for count in sorted({max(1, most // 2), most}) for way in ("mmdet", "ours")]
    if most < 100:
        cases.append(("ours", 100))
    with tempfile.TemporaryDirectory() as scratch:
        photo, small = Path(scratch, "large.jpg"), Path(scratch, "small.jpg")
        photo.write_bytes(max(bench_photos(args.images, 2, LARGE_WH), key=len))  # most bytes: the hardest to decode
        small.write_bytes(bench_photos(args.images, 1, SMALL_WH)[0])
        results = [memory.measure_memory(way, "tiny", 0.05, count, photo, small) for way, count in cases]
    show(memory.as_table(results))
    return [asdict(result) for result in results]


def run_peak(args: argparse.Namespace, ceiling: Ceiling) -> list[dict[str, Any]]:
    """RTMDet-Ins-x beside the matrix peak."""
    (photo,) = bench_photos(args.images, 1, SMALL_WH)
    results = []
    for batch in UTILISATION_BATCHES:
        results.append(network.measure_utilisation(LARGEST, photo, ceiling, args.rounds, args.seconds, batch))
        show(network.utilisation_lines(results[-1]))
    return [asdict(result) for result in results]


def run_throughput(args: argparse.Namespace, _: Ceiling) -> dict[str, Any]:
    """Images/s of the engine alone."""
    (photo,) = bench_photos(args.images, 1, SMALL_WH)
    rates = network.measure_throughput(("nano",) if args.quick else ("nano", "tiny"), photo, args.rounds, args.seconds)
    show(network.throughput_table(rates))
    return rates


def run_cuda(args: argparse.Namespace, _: Ceiling) -> dict[str, object]:
    """A GPU, if there is one."""
    (photo,) = bench_photos(args.images, 1, SMALL_WH)
    return measure_and_print(photo, args.rounds, args.seconds)


PARTS = {"compare": run_compare, "memory": run_memory, "peak": run_peak, "throughput": run_throughput, "cuda": run_cuda}
QUICK_PARTS = ("compare", "throughput", "cuda")


def memory_for_mmdet(args: argparse.Namespace) -> float:
    """Bytes."""
    return args.memory_gb * 1e9 if args.memory_gb else SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available


def show(text: str) -> None:
    """A table, at once."""
    print(f"\n{text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, VGA only, no memory, no x: a minute or two")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--photos", type=int, default=8, help="VGA photos; a quarter or half as many at 12 megapixels")
    parser.add_argument("--memory-gb", type=float, help="most memory for mmdet's masks, GB (default: 70 %% of what is free)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="e.g. docs/bench.png")
    measure.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.seconds, args.photos = 1, 0.5, 2
    warnings.simplefilter("ignore")  # mmdet's, many
    if (instances := compare.instances_that_fit(LARGE_WH, memory_for_mmdet(args))) < 100:
        print(f"at 12 megapixels both keep {instances} instances: mmdet would need more memory than it may have (--memory-gb)")
    ceiling = Ceiling()
    ceiling.measure()
    show("\n".join(ceiling.as_lines()))
    facts = {name: PARTS[name](args, ceiling) for name in args.only or (QUICK_PARTS if args.quick else PARTS)}
    images = str(args.images) if args.images else "grace_hopper"
    measure.finish("bench", {"rounds": args.rounds, "images": images, "ceiling": asdict(ceiling), **facts}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
