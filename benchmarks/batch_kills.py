"""Kill a batch at random moments, start it again, and compare its rows with those of a run that nobody disturbed.

    python -m benchmarks.batch_kills photos/ --kills 20 --output /tmp/kills

What is killed with SIGKILL, by chance: the driver with all it started, one worker of Ray Data, or the raylet (the node). After a worker's
death the batch must go on by itself; after the others the same command is given again. One photo a pass in fp32, so that equal means equal.
Prints a line for each kill and a JSON line last; the exit status is 1 if a row is missing, double or different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from loadtest.service.processes import kill_all, process_tree, title_of

TARGETS = ("driver", "worker", "raylet")
LONGEST_RUN_S = 240.0


class Batch:
    """One jobs.batch_ray over all photos, in its own process group and cluster.

    Args:
        photos: folder.
        output: of jobs.batch_ray.
    """

    def __init__(self, photos: Path, output: Path) -> None:
        command = [sys.executable, "-m", "jobs.batch_ray", str(photos), "--output", str(output), "--mini-batch-size", "8"]
        command += ["--detector-batch", "1", "--precision", "fp32", "--max-retries", "10"]
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.log = output.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def kill(self, target: str, chance: random.Random) -> bool:
        """SIGKILL the target; False if there is none at this moment."""
        signs = {"worker": "ray::MapWorker", "raylet": "raylet/raylet"}
        if target == "driver":
            return self.end()
        found = [process for process in process_tree(self.process.pid) if signs[target] in title_of(process)]
        if not found:
            return False
        with suppress(psutil.NoSuchProcess):
            chance.choice(found).kill()
            return True
        return False

    def end(self) -> bool:
        """Kill all of it; False if it had ended."""
        family, alive = process_tree(self.process.pid), self.process.poll() is None
        self.process.kill()
        self.process.wait()  # not by psutil, which would take the exit status
        kill_all(family)
        return alive


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All rows that are written."""
    return [row for file in sorted((output / "rows").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def disturbed(photos: Path, output: Path, kills: int, chance: random.Random, whole_s: float) -> list[str]:
    """Run a batch to its end and kill it at most `kills` times; returns what was killed, with the rows written by then."""
    done: list[str] = []
    batch = Batch(photos, output)
    while True:
        target, ends = chance.choice(TARGETS), time.monotonic() + chance.uniform(0.1, 0.7) * whole_s
        while batch.process.poll() is None and (time.monotonic() < ends or len(done) == kills):
            time.sleep(0.05)
        if batch.process.poll() is None:
            if not batch.kill(target, chance):
                continue
            done.append(f"{target} at {len(rows_of(output))} rows")
            print(f"killed: {done[-1]}", flush=True)
            if target == "worker":
                continue
            with suppress(subprocess.TimeoutExpired):
                batch.process.wait(60)
        status = batch.process.poll()
        batch.end()
        if status == 0:
            return done
        if not done or len(done) > kills:
            raise RuntimeError(f"the batch ended with status {status} without a kill:\n{batch.log.read_text()[-3000:]}")
        batch = Batch(photos, output)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    chance, began = random.Random(args.seed), time.monotonic()
    args.output.mkdir(parents=True)
    whole = Batch(args.photos, args.output / "whole")
    whole.process.wait(LONGEST_RUN_S)
    whole_s = time.monotonic() - began
    if whole.process.returncode:
        print(whole.log.read_text()[-3000:], file=sys.stderr)
        return 1
    wanted = {row["id"]: row["preds"] for row in rows_of(args.output / "whole")}
    print(f"undisturbed: {len(wanted)} rows in {whole_s:.0f} s", flush=True)
    killed: list[str] = []
    faults = {"missing": 0, "double": 0, "different": 0}
    while len(killed) < args.kills:
        output = args.output / f"batch{len(killed)}"
        killed += disturbed(args.photos, output, min(args.kills - len(killed), 3), chance, whole_s)
        rows = rows_of(output)
        faults["missing"] += len(set(wanted) - {row["id"] for row in rows})
        faults["double"] += len(rows) - len({row["id"] for row in rows})
        faults["different"] += sum(row["preds"] != wanted[row["id"]] for row in rows)
        print(f"{len(killed)} kills, {len(rows)} rows of {len(wanted)}: {faults}", flush=True)
        shutil.rmtree(output)
    counts = {target: sum(line.startswith(target) for line in killed) for target in TARGETS}
    print(
        json.dumps({"photos": len(wanted), "kills": len(killed), **counts, **faults, "seconds": round(time.monotonic() - began)})
    )
    return int(any(faults.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
