"""Honest traffic alone, and with a tenth of all requests hostile: what the honest clients feel.

Honest clients in a closed loop; one more client adds a hostile request whenever fewer than one in nine were sent. The two
settings take turns, round by round, and a second honest-only series shows what the machine's own noise is worth.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import requests

from loadtest.attacks import JSON, PATIENCE_S, as_body, random_body
from loadtest.mutants import mutants
from loadtest.photos import photos_from

HONEST_CLIENTS = 6
HOSTILE_CLIENTS = 4
SETTINGS = ("honest alone", "a tenth hostile", "honest alone, again")


@dataclass(frozen=True, slots=True)
class Share:
    """One setting over all its rounds.

    Args:
        name: the setting.
        honest_per_s: honest requests answered with 200, a second; median of the rounds.
        p50_ms, p99_ms: their latency over all rounds; None when none was answered.
        hostile_per_s: hostile requests sent, a second; mean.
        honest_errors: honest requests that were not answered with 200.
    """

    name: str
    honest_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    hostile_per_s: float
    honest_errors: int


def measure_shares(url: str, server: str, rounds: int, seconds: float) -> list[Share]:
    """Measure every setting in `rounds` rounds of `seconds` each, in turn.

    Args:
        url: of the service.
        server: URL of a `hostile_server` that the service may fetch from.
    """
    seen: dict[str, list[tuple[list[float], int, int]]] = {name: [] for name in SETTINGS}
    attacks = list(itertools.islice(_attacks(server), 400))
    for _ in range(rounds):
        for name in SETTINGS:
            seen[name].append(_round(url, attacks if "hostile" in name else [], seconds))
    return [_share(name, measured, seconds) for name, measured in seen.items() if measured]


def _attacks(server: str) -> Iterator[bytes]:
    """Bodies of all kinds, as an attacker would mix them."""
    chance, files = random.Random(5), iter(mutants(1000, seed=5))
    for path in itertools.cycle(("drip", "endless", "loop", "gzip-bomb", "nowhere")):
        yield as_body([next(files)])
        yield random_body(chance)
        yield as_body(["http://169.254.169.254/latest/"])
        yield as_body([f"{server}/{path}"])
        yield as_body([b"GIF89a" + chance.randbytes(200_000)])


def _round(url: str, attacks: list[bytes], seconds: float) -> tuple[list[float], int, int]:
    """Latencies of the honest, ms; their errors; number of hostile requests."""
    bodies = [as_body([photo]) for photo in photos_from(None, 8)]
    latencies: list[float] = []
    errors = itertools.count()
    ends = time.monotonic() + seconds
    sent_hostile, lock = 0, threading.Lock()

    def honest(first: int) -> None:
        with requests.Session() as session:
            for number in itertools.count(first):
                began = time.monotonic()
                if began > ends:
                    return
                status = session.post(
                    f"{url}/score", data=bodies[number % len(bodies)], headers=JSON, timeout=PATIENCE_S
                ).status_code
                latencies.append((time.monotonic() - began) * 1e3) if status == 200 else next(errors)

    def attacker() -> None:
        nonlocal sent_hostile
        with requests.Session() as session:
            while time.monotonic() < ends:
                with lock:
                    due = sent_hostile < len(latencies) / 9
                    number = sent_hostile
                    sent_hostile += due
                if not due:
                    time.sleep(0.005)
                    continue
                session.post(f"{url}/score", data=attacks[number % len(attacks)], headers=JSON, timeout=PATIENCE_S)

    with ThreadPoolExecutor(HONEST_CLIENTS + HOSTILE_CLIENTS) as pool:
        tasks = [pool.submit(honest, first) for first in range(HONEST_CLIENTS)]
        tasks += [pool.submit(attacker) for _ in range(HOSTILE_CLIENTS if attacks else 0)]
    for task in tasks:
        task.result()
    return latencies, next(errors), sent_hostile


def _share(name: str, measured: list[tuple[list[float], int, int]], seconds: float) -> Share:
    latencies = [ms for round_, _, _ in measured for ms in round_]
    p50, p99 = (float(np.percentile(latencies, q)) for q in (50, 99)) if latencies else (None, None)
    return Share(
        name=name,
        honest_per_s=float(np.median([len(round_) for round_, _, _ in measured])) / seconds,
        p50_ms=p50,
        p99_ms=p99,
        hostile_per_s=sum(count for _, _, count in measured) / len(measured) / seconds,
        honest_errors=sum(errors for _, errors, _ in measured),
    )
