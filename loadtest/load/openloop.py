"""Open-loop load: queries are sent by schedule, whether or not earlier ones were answered.

schedule (Poisson, seeded) ─▶ Client.ask ─▶ Query ─▶ summarise ─▶ Summary
                                                        └─ latency counts from the *scheduled* time

A closed-loop client waits while the server stalls and so does not measure the stall (coordinated omission). Here a query
that is late, refused, wrong or never answered counts as one that missed the bound.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, Self

import aiohttp
import numpy as np

from loadtest.load.traffic import JSON_HEADERS, OK, SCORE, Wire, outcome_of, stages_of

MISSES_ALLOWED = 0.01
"""Largest share of queries that may miss the bound, including failures, for p99."""

ABANDONED = "abandoned"
"""Outcome of a query that was not sent because its trial had already failed."""

NOT_CONNECTED = f"connection: {aiohttp.ClientConnectorError.__name__}"
"""Outcome of a query without a connection to the server."""

MESSAGE_BYTES = 300
"""Most bytes of a body that are kept as the message of a failed query."""

STALE_BOUNDS = 4.0
"""A trial has failed when a query has waited for this multiple of the bound."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query, all times in seconds from the start of its trial.

    Args:
        scheduled_s, sent_s, done_s: when it was scheduled, sent, and answered or given up.
        outcome: `ok`, or the name of what went wrong (loadtest.load.traffic.outcome_of, `timeout`, `unanswered`, `abandoned`,
            `connection`).
        stages_ms: times from the server-timing header.
        message: beginning of the body, if the status is not 200.
    """

    scheduled_s: float
    sent_s: float
    done_s: float
    outcome: str
    stages_ms: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def latency_ms(self) -> float:
        """From the scheduled time, milliseconds."""
        return (self.done_s - self.scheduled_s) * 1e3


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of one trial; None for values without data.

    Args:
        offered_per_s: queries scheduled a second; None if nothing was scheduled by rate.
        queries, ok: how many were scheduled, and answered correctly.
        outcomes: number of queries by outcome.
        p50_ms, p90_ms, p99_ms: latency of the `ok` ones.
        missed: share of all queries that failed or took longer than the bound.
        goodput_per_s: `ok` queries within the bound a second, until the last answer.
        images_per_s: images of `ok` queries a second, until the last answer.
        refused_p99_ms: latency of refusals.
        send_lag_p99_ms: delay of sending; if it is large, the client was the bottleneck.
        stages_ms: mean of each stage over `ok` queries.
        took_s: from the start until the last answer.
        cut_short: whether sending stopped early because the trial had failed; rates are of the sent queries.
    """

    offered_per_s: float | None
    queries: int
    ok: int
    outcomes: dict[str, int]
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    missed: float | None
    goodput_per_s: float | None
    images_per_s: float | None
    refused_p99_ms: float | None
    send_lag_p99_ms: float | None
    stages_ms: dict[str, float]
    took_s: float
    cut_short: bool = False

    @property
    def holds(self) -> bool:
        """Whether at most one query in a hundred missed the bound."""
        return self.missed is not None and self.missed <= MISSES_ALLOWED


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile by nearest rank: the smallest value that at least q % of the values do not exceed; None for no values."""
    return float(np.percentile(values, q, method="inverted_cdf")) if values else None


def whole_ms(ms: float | None) -> str:
    """Milliseconds for tables, without decimals; `-` for None."""
    return "-" if ms is None else f"{ms:.0f}"


def poisson_schedule(rate_per_s: float, count: int, seed: int) -> list[float]:
    """Send times, seconds, of a Poisson process with `count` arrivals in `count / rate_per_s` seconds, reproducible by seed.

    Given their number, arrivals are independent and uniform. With exponential gaps instead, 100 queries would come at a rate that is often
    a tenth higher or lower than asked.
    """
    chance = random.Random(seed)
    return sorted(chance.uniform(0, count / rate_per_s) for _ in range(count))


def summarise(
    queries: Sequence[Query], bound_ms: float | None, offered_per_s: float | None = None, images_per_query: int = 1
) -> Summary:
    """Summarise queries; without a bound only failures are misses."""
    good = [query for query in queries if query.outcome == OK]
    refused = [query.latency_ms for query in queries if query.outcome.startswith("refused")]
    latencies = [query.latency_ms for query in good]
    within = sum(bound_ms is None or latency <= bound_ms for latency in latencies)
    sent = [query for query in queries if query.outcome != ABANDONED]
    took_s = max((query.done_s for query in sent), default=0.0)
    return Summary(
        offered_per_s=offered_per_s,
        queries=len(queries),
        ok=len(good),
        outcomes=dict(Counter(query.outcome for query in queries)),
        p50_ms=percentile(latencies, 50),
        p90_ms=percentile(latencies, 90),
        p99_ms=percentile(latencies, 99),
        missed=(len(queries) - within) / len(queries) if queries else None,
        goodput_per_s=within / took_s if took_s else None,
        images_per_s=len(good) * images_per_query / took_s if took_s else None,
        refused_p99_ms=percentile(refused, 99),
        send_lag_p99_ms=percentile([(query.sent_s - query.scheduled_s) * 1e3 for query in sent], 99),
        stages_ms=_mean_stages(good),
        took_s=took_s,
        cut_short=len(sent) < len(queries),
    )


def _mean_stages(queries: Sequence[Query]) -> dict[str, float]:
    names = dict.fromkeys(name for query in queries for name in query.stages_ms)
    return {name: float(np.mean([q.stages_ms[name] for q in queries if name in q.stages_ms])) for name in names}


class QueryClient(Protocol):
    """Interface of a client: `Client` over HTTP, or any other that sends a query."""

    async def ask(self, number: int, began: float, scheduled_s: float, patience_s: float = 0.0) -> Query:
        """See `Client.ask`."""
        ...


class Client(AbstractAsyncContextManager["Client"]):
    """Sends requests to one service, with an unlimited number of connections.

    Args:
        url: base URL.
        bodies: encoded requests, used in turn.
        images: images in each.
        timeout_s: of one query, from when it is sent.
        headers: further request headers, such as an API key.
        wire: request and response format, for servers with another contract.
    """

    def __init__(
        self,
        url: str,
        bodies: Sequence[bytes],
        images: int = 1,
        timeout_s: float = 30.0,
        headers: dict[str, str] | None = None,
        wire: Wire = SCORE,
    ) -> None:
        self._target, self._answer = f"{url.rstrip('/')}{wire.path}", wire.answer
        self._bodies, self.images = [wire.request(body) for body in bodies], images
        self.timeout_s = timeout_s
        self._headers = JSON_HEADERS | (headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, number: int, began: float, scheduled_s: float, patience_s: float = 0.0) -> Query:
        """Send one query now and wait for its outcome; raises only when cancelled.

        Args:
            began: `time.perf_counter()` at the start of the trial.
            patience_s: wait at least so long, even if the client's timeout is shorter.
        """
        if self._session is None:
            raise RuntimeError("use the client within `async with`")
        sent_s, stages, message = time.perf_counter() - began, {}, ""
        timeout = aiohttp.ClientTimeout(total=max(self.timeout_s, patience_s))
        body = self._bodies[number % len(self._bodies)]
        try:
            async with self._session.post(self._target, data=body, timeout=timeout) as answer:
                content = await answer.read()
                done_s = time.perf_counter() - began  # before the answer is judged: that is our time, not the server's
                outcome = outcome_of(answer.status, answer.headers, self._answer(content), self.images)
                stages = stages_of(answer.headers.get("server-timing"))
                if answer.status != 200:
                    message = content[:MESSAGE_BYTES].decode(errors="replace")
        except TimeoutError:
            outcome, done_s = "timeout", time.perf_counter() - began
        except aiohttp.ClientError as error:
            outcome, done_s = f"connection: {type(error).__name__}", time.perf_counter() - began
        return Query(scheduled_s, sent_s, done_s, outcome, stages, message)


class _Watch:
    """Detects that a trial has failed: too many queries missed the bound, or one has waited for STALE_BOUNDS times the bound."""

    def __init__(self, queries: int, bound_ms: float) -> None:
        self._misses_left, self._bound_ms = int(queries * MISSES_ALLOWED), bound_ms
        self._waiting: dict[asyncio.Task[Query], float] = {}  # in the order in which they were due

    def sent(self, task: asyncio.Task[Query], scheduled_s: float) -> None:
        self._waiting[task] = scheduled_s
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Query]) -> None:
        del self._waiting[task]
        if not task.cancelled():
            query = task.result()
            self._misses_left -= query.outcome != OK or query.latency_ms > self._bound_ms

    def lost(self, now_s: float) -> bool:
        oldest_s = next(iter(self._waiting.values()), now_s)
        return self._misses_left < 0 or (now_s - oldest_s) * 1e3 > STALE_BOUNDS * self._bound_ms


async def run_open_loop(
    client: QueryClient, schedule: Sequence[float], patience_s: float, bound_ms: float | None = None
) -> list[Query]:
    """Send every query at its time; give up on unanswered ones `patience_s` after the last was sent.

    Args:
        bound_ms: stop sending as soon as the trial cannot meet this latency any more. The rest is `abandoned`; sent queries are
            still waited for, so that the queue is empty before the next trial.
    """
    began = time.perf_counter()
    watch = _Watch(len(schedule), bound_ms or float("inf"))
    tasks: list[asyncio.Task[Query]] = []
    for number, at in enumerate(schedule):
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
        if bound_ms is not None and watch.lost(time.perf_counter() - began):
            break
        task = asyncio.create_task(client.ask(number, began, at, patience_s))
        watch.sent(task, at)
        tasks.append(task)
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=patience_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    ended = time.perf_counter() - began
    answered = [
        Query(at, at, ended, "unanswered") if task.cancelled() else task.result()
        for at, task in zip(schedule, tasks, strict=False)
    ]
    return answered + [Query(at, at, at, ABANDONED) for at in schedule[len(tasks) :]]


async def run_closed_loop(client: QueryClient, queries: list[Query], began: float, until_s: float) -> None:
    """A closed-loop client: sends the next query when the last is done, until `until_s` seconds after `began`; appends to `queries`."""
    while (now_s := time.perf_counter() - began) < until_s:
        queries.append(await client.ask(len(queries), began, now_s))


async def run_single_stream(client: Client, seconds: float) -> list[Query]:
    """A closed-loop client for `seconds`; sends at least one query."""
    began = time.perf_counter()
    queries = [await client.ask(0, began, 0.0)]
    await run_closed_loop(client, queries, began, seconds)
    return queries
