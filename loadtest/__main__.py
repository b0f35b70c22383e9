"""Load tests from the command line.

    python -m loadtest run --scenario single-stream|server|steady|offline [--p99-ms 250] [--url http://127.0.0.1:8000] [--output folder]
    python -m loadtest overload|spike|soak|costs|plan [--help]                       (modules of measurements/ and planning/)
    python -m loadtest report results.json [--output folder]
    python -m loadtest locust MixedUser --headless -u 4 -t 30s --shape ramp      (everything after `locust` is Locust's)

Without --url the service is started from serve_config.yaml on a free loopback port and stopped at the end. Progress is printed to
stderr, a table and one line of JSON to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

from jobs.command_line import CommandFault, amount, cli_errors, count, positive, print_progress
from jobs.scoring.service_client import base_url
from loadtest.load.image_server import allow_image_server
from loadtest.load.openloop import NOT_CONNECTED, Client, run_single_stream, summarise
from loadtest.load.photos import as_size, photos_from
from loadtest.load.scenarios import Result, Setup, find_server_rate, run_offline, run_steady, run_stream
from loadtest.load.traffic import OK, RemoteHostError, key_headers, refuse_remote, request_bodies
from loadtest.measurements import overload, soak, spike
from loadtest.measurements.report import as_table, read_results, write_report
from loadtest.planning import costs, planner
from loadtest.service.local_service import SHIPPED_CONFIG, local_service
from loadtest.service.machine import describe_machine, free_port
from loadtest.service.scrape import Snapshot, discovery_file, snapshot
from loadtest.service.watch import Processes, Watch, processes_here, watched
from pipeline.errors import ServiceError
from serve_app.config_file import check_config

SCENARIOS = {"single-stream": run_stream, "server": find_server_rate, "steady": run_steady, "offline": run_offline}
MEASUREMENTS: dict[str, tuple[Any, str]] = {
    "overload": (overload, "twice the limit: goodput, refusals, recovery"),
    "spike": (spike, "from one client to ten: do replicas follow"),
    "soak": (soak, "long: errors and memory, minute by minute"),
    "costs": (costs, "CPU milliseconds per image by process, bytes by hop"),
    "plan": (planner, "replicas, CPUs and GPUs for a rate and a bound, from costs"),
}
"""Modules with `add_arguments(parser)` and `run(args)`, which returns the exit status; and their help texts."""
WARM_UP_S = 2.0
CONNECT_TRIES, CONNECT_PAUSE_S = 3, 0.2
METRICS_EVERY_MS = 1000
"""How often a service started here exports its metrics; Ray's default is every ten seconds."""
QUIET_S = 4.0, 13.0
"""Metrics that did not change for this time are complete, seconds: for a service started here, and for any other."""
SETTLE_TRIES = 5
"""Attempts to see them complete: if another client uses the service, they never stop changing."""


@cli_errors("loadtest")
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 measured, 1 measurement failed, 2 refused or wrong arguments, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["locust"]:
        return run_locust(arguments[1:])
    args = _parser().parse_args(arguments)
    if args.command in MEASUREMENTS:
        status: int = MEASUREMENTS[args.command][0].run(args)
        return status
    if args.command == "report":
        write_report(read_results(args.results), args.output or args.results.parent)
        return 0
    try:
        return run(args)
    except RemoteHostError as error:
        print(error, file=sys.stderr)
        return 2


class NothingAnswered(CommandFault):
    """No request of the warm-up succeeded; the message gives the outcomes."""


def run(args: argparse.Namespace) -> int:
    """Measure one scenario and print it."""
    if args.url:
        refuse_remote(args.url, args.allow_remote)
    setup = Setup(args.p99_ms, args.seconds, args.seed, args.repeats, offline_images=args.offline_images, rate_per_s=args.rate)
    bodies = request_bodies(photos_from(args.images, size_wh=args.size), args.images_per_request)
    machine = describe_machine()
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    with _target(args) as target:
        headers = key_headers(args.key)
        client = Client(target.url, bodies, args.images_per_request, headers=headers)
        result, watched_ = asyncio.run(_measure(client, args.scenario, setup, target))
        results = {
            "machine": machine,
            "service": _info(target.url, headers),
            "images": {
                "per_request": args.images_per_request,
                "source": str(args.images or f"generated {args.size[0]}x{args.size[1]}"),
            },
            "seed": args.seed,
            "seconds_per_trial": args.seconds,
            "result": result,
            "watched": watched_,
        }
    print(as_table(results))
    print(json.dumps({key: value for key, value in results.items() if key != "watched"}))
    if args.output:
        write_report(results, args.output)
    return 0 if _measured(result) else 1


@dataclass(frozen=True, slots=True)
class Target:
    """The service under load.

    Args:
        url: its base URL.
        processes: its processes on this machine; None if it runs elsewhere.
        discovery: file that lists its metrics exporters.
        quiet_s: metrics that did not change for this time are complete.
    """

    url: str
    processes: Processes | None
    discovery: Path
    quiet_s: float


async def _measure(client: Client, scenario: str, setup: Setup, target: Target) -> tuple[Result, dict[str, Any] | None]:
    """Run a scenario; returns its result, and the service's own metrics meanwhile, or None if they cannot be read."""
    async with client:
        await _warm_up(client, target.url)
        if target.processes is None:
            return await SCENARIOS[scenario](client, setup), None
        before = await _settled(target)
        with Watch(target.processes) as watch:
            result = await SCENARIOS[scenario](client, setup)
        after = await _settled(target) if before else None
    return result, watched(watch.samples, after - before) if before and after else None


async def _warm_up(client: Client, url: str) -> None:
    began, tries = time.perf_counter(), 0
    while (await client.ask(tries, began, time.perf_counter() - began)).outcome == NOT_CONNECTED:
        if (tries := tries + 1) == CONNECT_TRIES:
            raise NothingAnswered(f"cannot connect to {url}; start the service, or omit --url to start one here")
        await asyncio.sleep(CONNECT_PAUSE_S)
    outcomes = summarise(await run_single_stream(client, WARM_UP_S), None).outcomes
    if OK not in outcomes:
        hint = "; the key ($LOADTEST_KEY or --key) is missing or wrong" if "status 401" in outcomes else ""
        raise NothingAnswered(f"no request of the warm-up was answered: {outcomes}{hint}")


async def _settled(target: Target) -> Snapshot | None:
    """The metrics, once they stop changing; None, with a message, if they cannot be read."""
    try:
        last = await asyncio.to_thread(snapshot, target.discovery)
        for _ in range(SETTLE_TRIES):
            await asyncio.sleep(target.quiet_s)
            now = await asyncio.to_thread(snapshot, target.discovery)
            if now.images == last.images:
                break
            last = now
        return last
    except RuntimeError as error:
        print_progress(f"{error}: the report will not show batches, stages and replicas (--metrics names the file)")
        return None


def _measured(result: Result) -> bool:
    return result["rate_per_s"] is not None if result["scenario"] == "server" else result["summary"]["ok"] > 0


@contextmanager
def _target(args: argparse.Namespace) -> Iterator[Target]:
    if args.url:
        yield Target(args.url, None if args.allow_remote else processes_here, args.metrics, QUIET_S[1])
        return
    try:
        check_config(args.config)
    except ServiceError as error:
        raise CommandFault(f"{args.config}: {error}") from error
    with local_service(args.config, env={"RAY_metrics_report_interval_ms": str(METRICS_EVERY_MS)}) as service:
        yield Target(service.url, service.processes, discovery_file(service.folder / "ray"), QUIET_S[0])


def _info(url: str, headers: dict[str, str]) -> Any:
    """The service's /info; None if it cannot be read."""
    try:
        answer = requests.get(f"{url}/info", headers=headers, timeout=10)
        return answer.json() if answer.ok else None
    except requests.RequestException:
        return None


ONLY_PRINTS = ("-h", "--help", "-V", "--version", "-l", "--list", "--show-task-ratio", "--show-task-ratio-json")
"""Options with which Locust prints something and ends."""


def run_locust(arguments: list[str]) -> int:
    """Run Locust with our locustfile; without -H or LOCUST_HOST it starts a local service that may fetch from the locustfile's image
    server."""
    if find_spec("locust") is None:
        raise CommandFault("locust is not installed: .venv/bin/pip install -e '.[load]'")
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), *arguments]
    needs_no_service = any(re.match(r"(-H|--host)", argument) or argument in ONLY_PRINTS for argument in arguments)
    if os.environ.get("LOCUST_HOST") or needs_no_service:
        return subprocess.run(command, check=False).returncode
    port = free_port()

    with local_service(change=partial(allow_image_server, port=port)) as service:
        environment = os.environ | {"LOADTEST_IMAGE_PORT": str(port)}
        return subprocess.run([*command, "--host", service.url], env=environment, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="measure one scenario")
    run_.add_argument("--scenario", choices=SCENARIOS, required=True)
    run_.add_argument("--p99-ms", type=positive, default=250.0, help="latency bound (default: %(default)s)")
    run_.add_argument("--rate", type=positive, default=5.0, help="requests/s of the steady scenario (default: %(default)s)")
    run_.add_argument("--url", type=base_url, help="base URL of a running service (default: start one here)")
    run_.add_argument(
        "--metrics",
        type=Path,
        default=discovery_file(Path("/tmp/ray")),
        metavar="FILE",
        help="with --url: Ray's file that lists its metrics exporters (default: %(default)s)",
    )
    run_.add_argument(
        "--config",
        type=Path,
        default=SHIPPED_CONFIG,
        help="without --url: configuration of the service to start (default: %(default)s)",
    )
    run_.add_argument("--allow-remote", action="store_true", help="allow a URL of another machine")
    run_.add_argument("--key", default=os.environ.get("LOADTEST_KEY"), help="API key (default: $LOADTEST_KEY)")
    run_.add_argument(
        "--seconds",
        type=amount,
        default=10.0,
        help="length of one trial; extended to at least 100 queries (default: %(default)s)",
    )
    run_.add_argument("--seed", type=int, default=0)
    run_.add_argument("--repeats", type=count, default=3, help="trials that confirm the found rate (default: %(default)s)")
    run_.add_argument("--images", type=Path, help="folder of photos (default: generated ones)")
    run_.add_argument(
        "--size", type=as_size, default=(640, 480), metavar="WxH", help="size of generated photos (default: 640x480)"
    )
    run_.add_argument("--images-per-request", type=count, default=1)
    run_.add_argument("--offline-images", type=count, default=256, help="(default: %(default)s)")
    run_.add_argument("--output", type=Path, metavar="DIR", help="write results.json, report.html and report.png here")
    report = commands.add_parser("report", help="draw results that were measured before")
    report.add_argument("results", type=Path)
    report.add_argument("--output", type=Path, metavar="DIR", help="(default: beside the results)")
    for name, (module, purpose) in MEASUREMENTS.items():
        module.add_arguments(commands.add_parser(name, help=purpose, description=(module.__doc__ or "").splitlines()[0]))
    commands.add_parser("locust", help="run Locust; everything after it is Locust's", add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
