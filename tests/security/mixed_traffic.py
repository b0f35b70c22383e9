"""Measures honest traffic alone, and with a tenth of all requests hostile.

Once in a closed loop, which shows the throughput, and once with Poisson arrivals well below the limit, which shows the latency: clients
in a closed loop fall in step with the batches, so that whatever comes between, hostile or not, looks late. The settings take turns,
round by round, and a second honest-only series shows what the machine's own noise is worth.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.load.openloop import Client, Query, percentile, poisson_schedule, run_closed_loop, run_open_loop
from loadtest.load.photos import photos_from
from loadtest.load.traffic import OK
from tests.security.attacks import PATIENCE_S, encoded_body, random_body
from tests.security.mutants import mutants

HONEST_CLIENTS = 6
HONEST_PER_S = 15.0
HOSTILE_CLIENTS = 4
SETTINGS = ("honest alone", "a tenth hostile", "honest alone, again")


@dataclass(frozen=True, slots=True)
class Share:
    """One setting over all its rounds.

    Args:
        load: how the honest ask.
        name: the setting.
        honest_per_s: honest requests answered with 200, a second; median of the rounds.
        p50_ms, p99_ms: their latency over all rounds; None when none was answered.
        hostile_per_s: hostile requests sent, a second; mean.
        honest_errors: honest requests that were not answered with 200.
    """

    load: str
    name: str
    honest_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    hostile_per_s: float
    honest_errors: int


def measure_shares(url: str, server: str, rounds: int, seconds: float) -> list[Share]:
    """Measure every load with every setting in `rounds` rounds of `seconds` each, in turn.

    Args:
        url: of the service.
        server: URL of a `hostile_server` that the service may fetch from.
    """
    seen: dict[tuple[str, str], list[tuple[list[Query], int]]] = {(load, name): [] for load in LOADS for name in SETTINGS}
    attacks = list(itertools.islice(_attacks(server), 400))
    for number in range(rounds):
        for load, name in seen:
            measured = asyncio.run(_round(url, load, attacks if "hostile" in name else [], seconds, number))
            seen[load, name].append(measured)
    return [_share(load, name, measured, seconds) for (load, name), measured in seen.items() if measured]


def _attacks(server: str) -> Iterator[bytes]:
    """Bodies of all kinds, as an attacker would mix them."""
    chance, files = random.Random(5), iter(mutants(1000, seed=5))
    for path in itertools.cycle(("drip", "endless", "loop", "gzip-bomb", "nowhere")):
        yield encoded_body([next(files)])
        yield random_body(chance)
        yield encoded_body(["http://169.254.169.254/latest/"])
        yield encoded_body([f"{server}/{path}"])
        yield encoded_body([b"GIF89a" + chance.randbytes(200_000)])


async def _closed_loop(honest: Client, hostile: Client | None, seconds: float, _: int) -> tuple[list[Query], int]:
    """HONEST_CLIENTS that ask again when they are answered: what the service can carry; one hostile request for nine answers."""
    began = time.perf_counter()
    asked: list[Query] = []
    sent_hostile = 0

    async def attack(client: Client) -> None:
        nonlocal sent_hostile
        while time.perf_counter() - began < seconds:
            if sent_hostile >= len(asked) / 9:
                await asyncio.sleep(0.005)
                continue
            sent_hostile += 1
            await client.ask(sent_hostile, began, 0.0)

    attackers = [attack(hostile) for _ in range(HOSTILE_CLIENTS)] if hostile else []
    await asyncio.gather(*(run_closed_loop(honest, asked, began, seconds) for _ in range(HONEST_CLIENTS)), *attackers)
    return asked, sent_hostile


async def _poisson(honest: Client, hostile: Client | None, seconds: float, seed: int) -> tuple[list[Query], int]:
    """HONEST_PER_S arrivals, latency from the scheduled time; hostile ones come by themselves, a ninth as many."""
    schedule = poisson_schedule(HONEST_PER_S, round(HONEST_PER_S * seconds), seed)
    attacks = poisson_schedule(HONEST_PER_S / 9, round(HONEST_PER_S / 9 * seconds), seed + 1000) if hostile else []
    asked, _ = await asyncio.gather(
        run_open_loop(honest, schedule, PATIENCE_S), run_open_loop(hostile or honest, attacks, PATIENCE_S)
    )
    return asked, len(attacks)


LOADS = {f"{HONEST_CLIENTS} clients": _closed_loop, f"Poisson {HONEST_PER_S:g}/s": _poisson}


async def _round(url: str, load: str, attacks: list[bytes], seconds: float, seed: int) -> tuple[list[Query], int]:
    """Honest queries and the number of hostile ones."""
    bodies = [encoded_body([photo]) for photo in photos_from(None, 8)]
    async with Client(url, bodies) as honest, Client(url, attacks or bodies) as hostile:
        return await LOADS[load](honest, hostile if attacks else None, seconds, seed)


def _share(load: str, name: str, rounds: list[tuple[list[Query], int]], seconds: float) -> Share:
    good = [[query.latency_ms for query in asked if query.outcome == OK] for asked, _ in rounds]
    latencies = [ms for round_ in good for ms in round_]
    return Share(
        load=load,
        name=name,
        honest_per_s=float(np.median([len(round_) for round_ in good])) / seconds,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        hostile_per_s=sum(count for _, count in rounds) / len(rounds) / seconds,
        honest_errors=sum(len(asked) for asked, _ in rounds) - len(latencies),
    )
