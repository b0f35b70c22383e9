"""URLs of hosts that answer, that do not, and that stop to; and that nothing is left of any traffic."""

import asyncio
import random

import pytest

from deployments.scoring.url_hosts import UNANSWERED, UrlHosts
from pipeline.errors import FetchError, ImageError, StageFailed
from tests.support.event_loop import settle


def timed_out():
    return FetchError("too long", code="fetch_timeout")


class Fetches:
    """Fetches of URLs that end when told to."""

    def __init__(self):
        self.hosts, self.running, self.tasks = UrlHosts(), [], []

    def start(self, host, count):
        """Start this many; `running` has a future for each that has its turn: its result is the error to raise, or None."""
        tasks = [asyncio.create_task(self._fetch(host)) for _ in range(count)]
        self.tasks += tasks
        return tasks

    async def _fetch(self, host):
        async with self.hosts.turn(host):
            self.running.append(asyncio.get_running_loop().create_future())
            error = await self.running[-1]
            if error:
                raise error

    async def end(self, *errors):
        """End as many of the running ones, the oldest first."""
        ended, self.running = self.running[: len(errors)], self.running[len(errors) :]
        for fetch, error in zip(ended, errors, strict=True):
            fetch.set_result(error)
        await settle()

    async def outcomes(self):
        found = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert not self.hosts._hosts
        return [getattr(one, "code", one) for one in found]


async def test_a_host_that_does_not_answer_delays_only_its_own_urls():
    """Those that wait fail with the first that times out, because none was ever answered."""
    fetches = Fetches()
    fetches.start("dead", 24)
    fetches.start("good", 1)
    await settle()
    assert len(fetches.running) == UNANSWERED + 1
    assert fetches.hosts.waiting == 24 - UNANSWERED
    await fetches.end(timed_out())
    assert fetches.hosts.waiting == 0
    await fetches.end(*[timed_out()] * (UNANSWERED - 1), None)
    assert await fetches.outcomes() == ["fetch_timeout"] * 24 + [None]


@pytest.mark.parametrize("answer", [None, FetchError("status 404"), ImageError("no image"), "answered"])
async def test_any_answer_lets_all_others_start(answer):
    fetches = Fetches()
    fetches.start("host", 30)
    await settle()
    if answer == "answered":
        fetches.hosts.answered("host")
        await settle()
        assert len(fetches.running) == 30
    else:
        await fetches.end(answer)
        assert len(fetches.running) == 29
    await fetches.end(*[None] * len(fetches.running))
    await fetches.outcomes()


async def test_a_host_that_stops_to_answer():
    """Again a few at a time, until one is answered; none fails without a try, because some photos of a host may be slow."""
    fetches = Fetches()
    fetches.start("host", 1)
    fetches.start("host", 1)
    await settle()
    await fetches.end(None, timed_out())
    fetches.start("host", 1)
    await settle()
    await fetches.end(None)
    assert await fetches.outcomes() == [None, "fetch_timeout", None]

    fetches.start("host", 20)
    await settle()
    await fetches.end(None)
    await fetches.end(timed_out())
    late = fetches.start("host", 20)
    await settle()
    assert len(fetches.running) == 18  # those that had started; no others, as more than UNANSWERED are under way
    await fetches.end(*[timed_out()] * 18)
    assert len(fetches.running) == UNANSWERED
    assert not any(one.done() for one in late)
    await fetches.end(None)
    assert len(fetches.running) == 19
    await fetches.end(*[None] * 19)
    assert (await fetches.outcomes())[-20:] == [None] * 20


@pytest.mark.parametrize("error", [StageFailed("the replica died"), FetchError("status 503", code="fetch_unavailable")])
async def test_what_says_nothing_of_the_host_changes_nothing(error):
    fetches = Fetches()
    fetches.start("host", UNANSWERED + 2)
    await settle()
    await fetches.end(error)
    assert (len(fetches.running), fetches.hosts.waiting) == (UNANSWERED, 1)
    await fetches.end(*[None] * UNANSWERED)
    await fetches.end(None)
    await fetches.outcomes()


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_left_of_any_traffic(seed):
    """Also of those that are cancelled while they wait, or as their turn comes."""
    rng, fetches = random.Random(seed), Fetches()
    for _ in range(60):
        fetches.start(rng.choice("ab"), rng.randrange(12))
        if rng.random() < 0.5:
            await settle()
        for task in fetches.tasks:
            if rng.random() < 0.1:
                task.cancel()
        count = rng.randrange(len(fetches.running) + 1)
        fetches.running = [one for one in fetches.running if not one.done()]
        await fetches.end(*rng.choices([None, timed_out(), StageFailed("died")], k=min(count, len(fetches.running))))
    for task in fetches.tasks:
        task.cancel()
    await fetches.outcomes()
    assert (fetches.hosts.waiting, fetches.hosts._hosts) == (0, {})
