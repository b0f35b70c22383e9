"""Floods a running service by one client while an honest client uses it: measures the honest client's latency and the memory.

    python -m tests.security.floods [--rounds 3] [--seconds 15] [--rate 10] [--only NAME ...] [--output results.json]

    honest client, Poisson ──▶ service ◀── flood; each in a process of its own, the honest one with real-time priority if permitted

Each flood alternates with the honest client alone: without, with, without, ... Expected: p99 of all its requests beside the flood within
1.5 times that of all its requests without, memory of all processes under 4 GB. Prints a table and, last, one line of JSON; exit status 1
where something was not as expected.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
from PIL import Image

from loadtest.load.image_server import start_image_server
from loadtest.load.openloop import Client, Query, percentile, poisson_schedule, run_open_loop
from loadtest.load.photos import photos_from
from loadtest.load.traffic import JSON_HEADERS, OK, key_headers, request_bodies
from loadtest.service.local_service import LocalService, local_service
from loadtest.service.machine import describe_machine, print_results
from loadtest.service.watch import Sample, Watch
from tests.security.attacks import encoded_body
from tests.security.hostile_servers import hostile_server

HONEST_KEY, FLOOD_KEY = "honest", "flooding"
PATIENCE_S = 40.0
AHEAD_S = 2.0
"""Seconds from the start of the flood until the honest client starts."""
START_S = 60.0
WARM_UP_S = 10.0
MOST_TIMES_P99, MOST_MB = 1.5, 4000.0
NAMESERVER = ("127.0.0.1", 53)

Body = Callable[[str], bytes]
"""A flood's request, from the base URL of a hostile server."""


@dataclass(frozen=True, slots=True)
class Flood:
    """One way to flood.

    Args:
        body: of each request.
        clients: that ask again when they are answered.
        key: whose requests they are. With the honest one's, no share by key protects it.
        reads: whether they read their answers.
        of_urls: whether the honest client sends URLs.
    """

    body: Body
    clients: int
    key: str = HONEST_KEY
    reads: bool = True
    of_urls: bool = False


def _webp(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 110, 120)).save(file, "WEBP", quality=1)
    return file.getvalue()


def _photos(count: int, **params: object) -> bytes:
    return encoded_body(photos_from(None, count), **params)


HUGE_ANSWER = {"polygon_tolerance_px": 0, "decimals": 17, "score_threshold": 0.0, "holes": "rings"}
NO_ANSWER = "name server that does not answer"
FLOODS: dict[str, Flood] = {
    "8 clients with 64 slow URLs each": Flood(lambda server: encoded_body([f"{server}/silence?{n}" for n in range(64)]), 8),
    "4 clients with 8 WebPs of 25 Mpx each": Flood(lambda _: encoded_body([_webp(5000)] * 8), 4),
    "6 clients with one WebP of 40 Mpx each": Flood(lambda _: encoded_body([_webp(6324)]), 6),
    "8 clients that do not read huge answers": Flood(lambda _: _photos(16, **HUGE_ANSWER), 8, FLOOD_KEY, reads=False),
    NO_ANSWER: Flood(lambda _: encoded_body([f"http://{n}.silent.test/a.jpg" for n in range(24)]), 1, of_urls=True),
    "another key, 16 clients with 8 photos each": Flood(lambda _: _photos(8), 16, FLOOD_KEY),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the honest client.

    Args:
        queries: of the honest client.
        peak_mb, cores: as in Step.
        flood: outcomes of the flood's requests.
    """

    queries: Sequence[Query]
    peak_mb: float
    cores: Mapping[str, float]
    flood: Mapping[str, int]

    @property
    def good(self) -> list[Query]:
        """The rightly answered queries."""
        return [query for query in self.queries if query.outcome == OK]


@dataclass(frozen=True, slots=True)
class Step:
    """What the honest client saw in all trials beside a flood, or in those without, and what the service took.

    Args:
        name: the flood, or that there was none.
        asked, failed: honest requests, and those that were not answered rightly.
        p50_ms, p99_ms: of right answers; None if there was none.
        p99s_ms: of each trial.
        peak_mb: memory of all processes of the service that is not shared, MB (1e6 bytes); what a fork shares is counted once.
        flood: outcomes of the flood's requests; `hung up` if the client or the service closed an unread answer.
        median_ms, slowest_ms: mean time by stage of the honest answers around the median, and of the slowest 5 % (see `by_stage`).
        cores: cores used by the service's parts, by the flood's own processes and by this one.
    """

    name: str
    asked: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    p99s_ms: list[float | None]
    peak_mb: float
    flood: dict[str, int]
    median_ms: dict[str, float] = field(default_factory=dict)
    slowest_ms: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)


class Floods:
    """Runs the steps against one service.

    Args:
        service: with the keys HONEST_KEY and FLOOD_KEY.
        honest: runs the honest client.
        hostile: base URL of a hostile server.
        photo_urls: that the service may fetch.
        rate_per_s, seconds: of the honest client.
    """

    def __init__(
        self, service: LocalService, honest: Executor, hostile: str, photo_urls: Sequence[str], rate_per_s: float, seconds: float
    ) -> None:
        self._service, self._honest, self._hostile = service, honest, hostile
        self._rate_per_s, self._seconds = rate_per_s, seconds
        self._forked_mb = forked_mb(service)
        self._bodies = {False: request_bodies(photos_from(None, 8), 1), True: request_bodies(photo_urls, 1)}

    def alternated(self, name: str, flood: Flood, rounds: int) -> tuple[Step, Step]:
        """The honest client without and beside a flood in turn, `rounds` times, and once more without."""
        without, beside = [self.alone(0, of_urls=flood.of_urls)], list[Trial]()
        for number in range(rounds):
            beside.append(self.beside(flood, number))
            without.append(self.alone(number + 1, of_urls=flood.of_urls))
        return summed_up("none, URLs" if flood.of_urls else "none", without), summed_up(name, beside)

    def alone(self, number: int, *, of_urls: bool = False) -> Trial:
        """The honest client, and nothing beside it; its requests come at other times for each `number`."""
        return self._trial(number, of_urls, {}, None)

    def beside(self, flood: Flood, number: int) -> Trial:
        """The honest client while a flood runs."""
        outcomes: dict[str, int] = {}
        with flooding(self._service.url, flood, self._hostile, outcomes) as process:
            time.sleep(AHEAD_S)
            return self._trial(number, flood.of_urls, outcomes, process)

    def _trial(self, number: int, of_urls: bool, outcomes: dict[str, int], flood: psutil.Process | None) -> Trial:
        schedule = poisson_schedule(self._rate_per_s, round(self._rate_per_s * self._seconds), seed=number)
        before_s = cpu_s(flood)
        with Watch(self._service.processes, interval_s=0.2) as watch:
            queries, honest_s = self._honest.submit(honest_queries, self._service.url, self._bodies[of_urls], schedule).result()
        took_s = watch.samples[-1].at_s
        peak_mb = max(sum(sample.memory_mb.values()) for sample in watch.samples) - self._forked_mb
        cores = mean_cores(watch.samples) | {"honest client": honest_s / took_s, "flood": (cpu_s(flood) - before_s) / took_s}
        trial = Trial(queries, peak_mb, cores, outcomes)
        print(summed_up("beside a flood" if flood else "alone", [trial]), file=sys.stderr, flush=True)
        return trial


def summed_up(name: str, trials: Sequence[Trial]) -> Step:
    """All trials of a step together."""
    good, asked = [query for trial in trials for query in trial.good], sum(len(trial.queries) for trial in trials)
    p50, p99 = (_latency_ms(good, q) for q in (50, 99))
    p99s = [_latency_ms(trial.good, 99) for trial in trials]
    flood = sum((Counter(trial.flood) for trial in trials), Counter[str]())
    parts = dict.fromkeys(part for trial in trials for part in trial.cores)
    cores = {part: sum(trial.cores.get(part, 0.0) for trial in trials) / len(trials) for part in parts}
    peak_mb = max(trial.peak_mb for trial in trials)
    return Step(name, asked, asked - len(good), p50, p99, p99s, peak_mb, dict(flood), *by_stage(good), cores)


def _latency_ms(queries: Sequence[Query], q: float) -> float | None:
    return percentile([query.latency_ms for query in queries], q)


def honest_queries(url: str, bodies: Sequence[bytes], schedule: Sequence[float]) -> tuple[list[Query], float]:
    """Ask by the schedule; returns what came of it, and the CPU seconds that it took.

    For a process of its own. It gets a core whenever it wants one, where the system permits that: users are on machines of their own, so
    their waiting for a core beside the flood is not the service's latency.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    began_s = time.process_time()

    async def ask() -> list[Query]:
        async with Client(url, bodies, headers=key_headers(HONEST_KEY)) as honest:
            return await run_open_loop(honest, schedule, PATIENCE_S)

    return asyncio.run(ask()), time.process_time() - began_s


def cpu_s(process: psutil.Process | None) -> float:
    """CPU seconds of a process so far; 0 for none."""
    return sum(process.cpu_times()[:2]) if process else 0.0


def mean_cores(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean cores by part of the service."""
    total: defaultdict[str, float] = defaultdict(float)
    for before, sample in pairwise(samples):
        for part, cores in sample.cores.items():
            total[part] += cores * (sample.at_s - before.at_s)
    return {part: seconds / samples[-1].at_s for part, seconds in sorted(total.items(), key=lambda item: -item[1])}


def by_stage(queries: Sequence[Query]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean milliseconds by stage: of the fifth of the queries around the median, and of the slowest 5 %.

    The stages are those of the `server-timing` header, and `send`, by which the client was late, and `rest`: HAProxy, reading the body, and
    whatever else passes before admission and after the answer.
    """
    slowest_last = sorted(queries, key=lambda query: query.latency_ms)
    count = len(slowest_last)
    middle, slowest = slowest_last[2 * count // 5 : -(-3 * count // 5)], slowest_last[-max(count // 20, 1) :]
    return _mean_stages(middle), _mean_stages(slowest)


def _mean_stages(queries: Sequence[Query]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for query in queries:
        send_ms = (query.sent_s - query.scheduled_s) * 1e3
        rest_ms = query.latency_ms - send_ms - sum(query.stages_ms.values())
        for stage, ms in (query.stages_ms | {"send": send_ms, "rest": rest_ms}).items():
            total[stage] += ms
    return {stage: ms / len(queries) for stage, ms in total.items()}


def forked_mb(service: LocalService) -> float:
    """Memory that forks (of Ray's dashboard) still share with their parent, as far as the sum of all processes counts it several times."""
    counted_mb = 0.0
    for process in service.processes():
        with suppress(OSError, psutil.Error):
            memory = process.memory_info()
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            own_kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
            counted_mb += (memory.rss - memory.shared - own_kib * 1024) / 1e6
    return counted_mb


@contextmanager
def flooding(url: str, flood: Flood, hostile: str, outcomes: dict[str, int]) -> Iterator[psutil.Process]:
    """Flood from another process, which is yielded, while the block runs; what came of its requests is added to `outcomes` at the end."""
    context = multiprocessing.get_context("spawn")
    begun, ended, results = context.Event(), context.Event(), context.SimpleQueue()
    name = next(name for name, known in FLOODS.items() if known is flood)
    process = context.Process(target=_flood_process, args=(url, name, hostile, begun, ended, results), daemon=True)
    process.start()
    try:
        if not begun.wait(START_S):
            raise RuntimeError(f"the flood {name!r} did not begin within {START_S:g} s")
        yield psutil.Process(process.pid)
    finally:
        ended.set()
        outcomes |= results.get() if begun.is_set() else {}
        process.join()


def _flood_process(url: str, name: str, hostile: str, begun: Any, ended: Any, results: Any) -> None:
    flood, outcomes = FLOODS[name], Counter[str]()
    body = flood.body(hostile)
    begun.set()

    async def run() -> None:
        ask = _read if flood.reads else _do_not_read
        clients = [asyncio.create_task(_client(ask, url, body, flood.key, outcomes)) for _ in range(flood.clients)]
        await asyncio.to_thread(ended.wait)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    asyncio.run(run())
    results.put(dict(outcomes))


async def _client(ask: Callable[..., Any], url: str, body: bytes, key: str, outcomes: Counter[str]) -> None:
    while True:
        try:
            outcomes[await ask(url, body, key)] += 1
        except (aiohttp.ClientError, OSError) as error:
            outcomes[type(error).__name__] += 1
            await asyncio.sleep(0.1)


async def _read(url: str, body: bytes, key: str) -> str:
    headers = JSON_HEADERS | key_headers(key)
    async with aiohttp.ClientSession(headers=headers) as session, session.post(f"{url}/score", data=body) as answer:
        await answer.read()
        if answer.status in (429, 503):
            await asyncio.sleep(0.2)  # Retry-After is for the honest
        return str(answer.status)


async def _do_not_read(url: str, body: bytes, key: str) -> str:
    """Send a request, read the head of its answer, and wait until the service hangs up."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=4096)
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        status = (await reader.readline()).decode().split(" ")[1:2]
        if status == ["200"]:
            await asyncio.sleep(PATIENCE_S / 2)  # asyncio stops reading beyond twice the limit
            return "hung up"
        await asyncio.sleep(0.2)
        return status[0] if status else "closed"
    finally:
        writer.close()


@contextmanager
def silent_name_server() -> Iterator[bool]:
    """A name server that never answers, where this machine asks 127.0.0.1 for names and we may listen there; yields whether so."""
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    asks_here = [line[1] for line in lines if line[:1] == ["nameserver"]] == [NAMESERVER[0]]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind(NAMESERVER)
        except OSError:
            asks_here = False
        yield asks_here


def run(rate_per_s: float, seconds: float, rounds: int, only: Sequence[str]) -> list[Step]:
    """Start the service and flood it in every way; each flood's step comes after the one without it."""
    with ExitStack() as stack:
        hostile = stack.enter_context(hostile_server())
        photo_server, photo_urls = start_image_server(photos_from(None, 8))
        stack.callback(photo_server.shutdown)
        has_names = stack.enter_context(silent_name_server())

        def change(document: dict[str, Any]) -> None:
            (application,) = document["applications"]
            ports = [80, 443, urlsplit(hostile).port, photo_server.server_port]
            application["args"]["image_loader"]["fetch"] = {"allowed_networks": ["127.0.0.1/32"], "allowed_ports": ports}
            application["args"]["ingress"]["auth"] = {"keys_env": ["FLOODS_HONEST", "FLOODS_FLOODING"]}

        keys = {"FLOODS_HONEST": HONEST_KEY, "FLOODS_FLOODING": FLOOD_KEY}
        service = stack.enter_context(local_service(change=change, env=keys))
        honest = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        floods = Floods(service, honest, hostile, photo_urls, rate_per_s, seconds)
        Floods(service, honest, hostile, photo_urls, rate_per_s, WARM_UP_S).alone(0)
        steps: list[Step] = []
        for name, flood in FLOODS.items():
            if (only and not any(part in name for part in only)) or (name == NO_ANSWER and not has_names):
                print(f"left out: {name}", file=sys.stderr)
                continue
            steps += floods.alternated(name, flood, rounds)
        return steps


def times_p99(step: Step, steps: Sequence[Step]) -> float | None:
    """A flood's p99 over that of the step without it; None where one is missing."""
    place = steps.index(step)
    without_ms = steps[place - 1].p99_ms if place else None
    return step.p99_ms / without_ms if step.name in FLOODS and step.p99_ms and without_ms else None


def as_expected(steps: Sequence[Step]) -> bool:
    """Whether every flood left the honest client its answers, their time, and the machine its memory."""
    factors = [times_p99(step, steps) for step in steps if step.name in FLOODS]
    slow = any(factor is None or factor > MOST_TIMES_P99 for factor in factors)
    return not slow and all(step.failed == 0 and step.peak_mb < MOST_MB for step in steps)


def as_table(steps: Sequence[Step]) -> str:
    """For people."""
    times = f"{'p50 ms':>8}{'p99 ms':>8}{'of each trial':>15}{'x p99':>7}"
    lines = [f"{'flood':46}{'asked':>6}{'failed':>7}{times}{'peak MB':>9}  the flood's requests"]
    for step in steps:
        p50, p99 = (f"{ms:.0f}" if ms is not None else "-" for ms in (step.p50_ms, step.p99_ms))
        factor = times_p99(step, steps)
        shown = f"{factor:.1f}" if factor is not None else "-"
        trials_ms = [ms for ms in step.p99s_ms if ms is not None]
        least_most = f"{min(trials_ms):.0f} to {max(trials_ms):.0f}" if trials_ms else "-"
        outcomes = ", ".join(f"{name} {count}" for name, count in step.flood.items())
        times = f"{p50:>8}{p99:>8}{least_most:>15}{shown:>7}"
        lines.append(f"{step.name:46}{step.asked:6}{step.failed:7}{times}{step.peak_mb:9.0f}  {outcomes}")
    return "\n".join(lines)


def stages_table(steps: Sequence[Step]) -> str:
    """Where the honest answers' time goes, and who uses the cores; for people."""
    stages = list(dict.fromkeys(stage for step in steps for stage in (*step.median_ms, *step.slowest_ms)))
    lines = [f"{'ms by stage':46}{'':12}" + "".join(f"{stage:>11}" for stage in stages)]
    for step in steps:
        for which, times_ms in (("median", step.median_ms), ("slowest 5 %", step.slowest_ms)):
            lines.append(f"{step.name:46}{which:12}" + "".join(f"{times_ms.get(stage, 0.0):11.1f}" for stage in stages))
    lines.append("cores")
    for step in steps:
        lines.append(f"{step.name:46}" + ", ".join(f"{part} {cores:.2f}" for part, cores in step.cores.items() if cores >= 0.005))
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.floods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="trials beside each flood (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of honest traffic in each trial (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="honest requests a second (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=[], help="floods whose names contain one of these")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    steps = run(args.rate, args.seconds, args.rounds, args.only)
    facts = {"machine": describe_machine(), "floods": [asdict(step) for step in steps]}
    print(as_table(steps))
    print(stages_table(steps))
    print_results(facts, args.output)
    return 0 if as_expected(steps) else 1


if __name__ == "__main__":
    sys.exit(main())
