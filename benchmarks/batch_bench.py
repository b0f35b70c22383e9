"""Photos a second of jobs.batch_ray, from Parquet and from a folder, beside the engine alone in a loop on the same cores and the HTTP way.

    python -m benchmarks.batch_bench photos/ --count 5000 --output /tmp/batch

The photos are repeated under new names (links). `loop` is load, network in batches, outlines, JSON in one process, one stage after the
other; `network` is the network alone on loaded photos. A job's rate is told twice: from the command's start to its end, and while it runs
(between a fifth and the last of its photos). Memory is the sum of the private memory (USS) of all processes of the job, every 2 s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.service.local_service import local_service
from loadtest.service.processes import private_memory_mb, process_tree
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions
from pipeline.masks.encode import instances_to_json_objects, join_json_objects, load_loops
from pipeline.model.zoo import DEFAULT_CACHE
from pipeline.types import DetectOptions, OutlineOptions

PARTS = ("loop", "parquet", "folder", "http")
MODEL = "rtmdet-ins_nano_person"
BATCH = 8
_PROGRESS = re.compile(r"([\d,]+) of [\d,]+ photos")


def repeated(photos: Path, count: int, output: Path) -> Path:
    """A folder of `count` links to the photos, in turn."""
    output.mkdir(parents=True)
    files = sorted(file for file in photos.iterdir() if file.suffix == ".jpg")
    for number, file in zip(range(count), itertools.cycle(files), strict=False):
        (output / f"{number:05}.jpg").symlink_to(file)
    return output


def as_parquet(folder: Path, path: Path) -> Path:
    """The photos' bytes in one file, in groups of 100."""
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        files = iter(sorted(folder.iterdir()))
        while names := list(itertools.islice(files, 100)):
            writer.write_table(
                pa.table({"id": [file.name for file in names], "image": [file.read_bytes() for file in names]}, schema=schema)
            )
    return path


def in_a_loop(folder: Path, count: int, threads: int) -> dict[str, float]:
    """Photos a second of the network alone, and of all stages one after the other."""
    engine = load_engine(MODEL, EngineOptions("auto", "auto", threads=threads, max_batch=BATCH, cache_dir=DEFAULT_CACHE))
    files, options = sorted(folder.iterdir())[:count], [DetectOptions()] * BATCH
    load_loops()
    loaded = [load_image(file.read_bytes(), DecodeLimits(), engine.info.input_size) for file in files[:BATCH]]
    engine.detect(loaded, options)
    began = time.perf_counter()
    for _ in range(count // BATCH):
        engine.detect(loaded, options)
    network = count // BATCH * BATCH / (time.perf_counter() - began)
    began = time.perf_counter()
    for first in range(0, count - BATCH + 1, BATCH):
        images = [load_image(file.read_bytes(), DecodeLimits(), engine.info.input_size) for file in files[first : first + BATCH]]
        for found in engine.detect(images, options):
            join_json_objects(instances_to_json_objects(found, engine.info.classes, OutlineOptions()))
    return {"network": network, "loop": count // BATCH * BATCH / (time.perf_counter() - began)}


def job(source: Path, count: int, output: Path, *options: str) -> dict[str, Any]:
    """Rates and memory of one batch."""
    command = [sys.executable, "-m", "jobs.batch_ray", str(source), "--output", str(output), *options]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONUNBUFFERED": "1"}
    log, began, memory, seen = output.with_suffix(".log"), time.monotonic(), [], list[tuple[float, int]]()
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
        while process.poll() is None:
            time.sleep(2)
            memory.append(private_memory_mb(process_tree(process.pid)))
            done = [int(found.replace(",", "")) for found in _PROGRESS.findall(log.read_text())]
            if done and (not seen or done[-1] > seen[-1][1]):
                seen.append((time.monotonic(), done[-1]))
    wall = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(log.read_text()[-3000:])
    running = [(at, done) for at, done in seen if count / 5 <= done < count]
    steady = (running[-1][1] - running[0][1]) / (running[-1][0] - running[0][0]) if len(running) > 1 else None
    quarters = [round(max(memory[len(memory) * part // 4 : len(memory) * (part + 1) // 4], default=0)) for part in range(4)]
    return {"photos": count, "wall": count / wall, "running": steady, "memory_mb_by_quarter": quarters}


def over_http(folder: Path, count: int, output: Path) -> dict[str, Any]:
    """Photos a second of jobs.batch_score against the shipped service on the same machine."""
    with local_service() as service:
        command = [sys.executable, "-m", "jobs.batch_score", str(folder), "--url", service.url, "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"photos": count, "running": float(re.findall(r"([\d.]+) images/s", done.stdout)[-1])}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--loop-count", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args, options = parser.parse_known_args()
    folder = repeated(args.photos, args.count, args.output / "photos")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "loop": lambda: in_a_loop(folder, args.loop_count, os.cpu_count() or 1),
        "parquet": lambda: job(
            as_parquet(folder, args.output / "photos.parquet"), args.count, args.output / "of_parquet", *options
        ),
        "folder": lambda: job(folder, args.count, args.output / "of_folder", *options),
        "http": lambda: over_http(folder, args.count, args.output / "http.jsonl"),
    }
    result: dict[str, Any] = {}
    for part in args.only:
        result[part] = parts[part]()
        print(part, result[part], flush=True)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
