"""Attacks on the real service by files, bodies and URLs, and the latency of honest traffic meanwhile.

    python -m tests.security.hostile [--images ../shared/images] [--mutants 2048] [--bodies 5000] [--rounds 5] [--output results.json]

Expected of every attack: no status of 500 or above, no path, traceback or address in an answer, the same replica processes
before and after, memory flat. Prints tables and, last, one line of JSON; exit status 1 if something was not as expected.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments.settings import DEPLOYMENTS
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.machine import describe_machine
from loadtest.service.parts import DECODERS
from loadtest.service.watch import Sample, Watch
from tests.security.attacks import SPECIALS, Outcome, Verdicts, attack_with_bodies, attack_with_files
from tests.security.hostile_servers import hostile_server
from tests.security.mixed_traffic import measure_shares
from tests.security.mutants import mutants

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif", ".heic", ".svg", ".txt"}
WARM_UP = 272
SERVING_PARTS = {*DEPLOYMENTS, DECODERS, "HAProxy", "proxy"}


def run(images: Path, mutant_count: int, body_count: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Start the service, attack it, and give everything that was seen."""
    with hostile_server() as server:
        port = urlsplit(server).port

        def allow_hostile_server(document: dict[str, Any]) -> None:
            fetch = {"allowed_networks": ["127.0.0.1/32"], "allowed_ports": [80, 443, port]}
            document["applications"][0]["args"]["image_loader"]["fetch"] = fetch

        with local_service(change=allow_hostile_server) as service:
            attack_with_files(service.url, list(mutants(WARM_UP, seed=0)))
            attack_with_bodies(service.url, 200, seed=0)
            pids, before = replica_pids(service), memory_mb(service)
            campaigns = run_campaigns(service, images, mutant_count, body_count)
            specials = run_specials(service, server)
            after, pids_after = memory_mb(service), replica_pids(service)
            shares = measure_shares(service.url, server, rounds, seconds)
    return {
        "machine": describe_machine(),
        "campaigns": campaigns,
        "specials": [asdict(outcome) for outcome in specials],
        "replicas_lost": sum(pid not in pids_after for pid in pids),
        "memory_mb": {part: [mb, after.get(part)] for part, mb in before.items()},
        "shares": [asdict(share) for share in shares],
    }


def replica_pids(service: LocalService) -> list[int]:
    """Process ids of all replicas of the stages that do not scale on their own, and of the first of those that do."""
    return [pid for name in DEPLOYMENTS for pid in service.replica_pids(name)]


def run_campaigns(service: LocalService, images: Path, mutant_count: int, body_count: int) -> dict[str, dict[str, Any]]:
    """Many small attacks of one kind each; the verdicts on all their answers."""
    campaigns: dict[str, Verdicts] = {}
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if images.is_dir() else []
    if files:
        campaigns[f"{len(files)} files of {images.name}/"] = attack_with_files(service.url, [path.read_bytes() for path in files])
    else:
        print(f"{images} is not there: its files are skipped", file=sys.stderr)
    campaigns[f"{mutant_count} mutated files"] = attack_with_files(service.url, list(mutants(mutant_count, seed=1)))
    campaigns[f"{body_count} random bodies"] = attack_with_bodies(service.url, body_count, seed=1)
    return {name: asdict(verdicts) for name, verdicts in campaigns.items()}


def run_specials(service: LocalService, server: str) -> list[Outcome]:
    """One large attack after the other, each with its time and the memory that the service grew by meanwhile."""
    outcomes = []
    for name, attack in SPECIALS.items():
        with Watch(service.processes, interval_s=0.1) as watch:
            outcome = attack(service.url, server)
        sums_mb = [sum(own_memory_mb(sample).values()) for sample in watch.samples]
        outcomes.append(Outcome(name, *outcome, grown_mb=max(sums_mb) - sums_mb[0]))
    return outcomes


def memory_mb(service: LocalService) -> dict[str, float]:
    """What the service's parts hold now, Ray's own processes left out, MB (1e6 bytes)."""
    with Watch(service.processes) as watch:
        pass
    return own_memory_mb(watch.samples[0])


def own_memory_mb(sample: Sample) -> dict[str, float]:
    """A look's memory without Ray's own processes."""
    return {part: mb for part, mb in sorted(sample.memory_mb.items()) if part in SERVING_PARTS}


def as_expected(results: dict[str, Any]) -> bool:
    """Whether nothing broke."""
    return (
        results["replicas_lost"] == 0
        and all(not campaign["server_errors"] and not campaign["leaks"] for campaign in results["campaigns"].values())
        and all(400 <= outcome["status"] < 500 for outcome in results["specials"])
    )


def as_tables(results: dict[str, Any]) -> str:
    """The results for people."""
    lines = [f"{'campaign':34}{'answers':>9}{'5xx':>5}{'leaks':>7}{'seconds':>9}   statuses and codes"]
    for name, one in results["campaigns"].items():
        counts = ", ".join(f"{code} {count}" for code, count in sorted(one["counts"].items(), key=lambda item: -item[1])[:6])
        lines.append(
            f"{name:34}{one['answers']:>9}{one['server_errors']:>5}{len(one['leaks']):>7}{one['seconds']:>9.1f}   {counts}"
        )
    lines += ["", f"{'attack':34}{'status':>8}  {'code':22}{'seconds':>8}{'memory grew by, MB':>20}"]
    for one in results["specials"]:
        lines.append(f"{one['name']:34}{one['status']:>8}  {one['code']:22}{one['seconds']:>8.2f}{one['grown_mb']:>20.0f}")
    lines += ["", f"replicas lost: {results['replicas_lost']}", f"{'memory of its own, MB':34}{'before':>9}{'after':>9}"]
    for name, (before, after) in results["memory_mb"].items():
        lines.append(f"{name:34}{before:>9.0f}{'gone' if after is None else f'{after:.0f}':>9}")
    lines += ["", f"{'honest traffic':34}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'hostile/s':>11}"]
    for one in results["shares"]:
        p50, p99 = (f"{one[key]:.0f}" if one[key] is not None else "-" for key in ("p50_ms", "p99_ms"))
        lines.append(
            f"{one['load'] + ', ' + one['name']:34}{one['honest_per_s']:>12.2f}{p50:>9}{p99:>9}{one['hostile_per_s']:>11.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.hostile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("../shared/images"), help="folder of odd images")
    parser.add_argument("--mutants", type=int, default=2048)
    parser.add_argument("--bodies", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="of honest traffic, alone and mixed in turn; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one round")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    results = run(args.images, args.mutants, args.bodies, args.rounds, args.seconds)
    print(as_tables(results))
    if args.output is not None:
        args.output.write_text(json.dumps(results), encoding="utf-8")
    print(json.dumps(results))
    return 0 if as_expected(results) else 1


if __name__ == "__main__":
    sys.exit(main())
