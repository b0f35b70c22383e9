"""Limits the URLs of one host at a time until it answers, so that a dead host delays only its own.

    the host answered its last fetch  ─▶ all of its URLs at once, as far as there are slots
    it did not, or has not yet        ─▶ at most UNANSWERED at a time; if one times out and none was ever answered, all that wait fail, too

Hosts are told apart by domain and port: a name server that does not answer concerns a whole domain.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipeline.errors import FetchError, ImageError, LimitExceeded

UNANSWERED = 8
"""URLs of a host that has not answered, at a time: a quarter of the default of `max_urls_in_flight`."""


@dataclass(slots=True, eq=False)
class _Host:
    """A host of which URLs are fetched or wait.

    Attributes:
        fetching: how many are fetched now.
        waiting: a future for each that waits.
        answers: whether the last fetch was answered, if only with an error.
        ever_answered: whether any was.
    """

    fetching: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    answers: bool = False
    ever_answered: bool = False

    def start_more(self) -> None:
        while self.waiting and (self.answers or self.fetching < UNANSWERED):
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self.fetching += 1

    def answered(self) -> None:
        self.answers = self.ever_answered = True
        self.start_more()

    def timed_out(self, error: FetchError) -> None:
        self.answers = False
        while self.waiting and not self.ever_answered:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_exception(FetchError(error.message, code=error.code))


class UrlHosts:
    """The hosts of all URLs that are fetched or wait. For one event loop."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    @property
    def waiting(self) -> int:
        """How many URLs wait for their host."""
        return sum(len(host.waiting) for host in self._hosts.values())

    def answered(self, name: str) -> None:
        """A host answered a fetch whose context goes on."""
        self._hosts[name].answered()

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait until a URL of the host with this name may be fetched; the context is the fetch, whose exception says how it ended.

        Raises:
            FetchError: `fetch_timeout`: one that was fetched meanwhile timed out, and none was ever answered.
        """
        host = self._hosts.setdefault(name, _Host())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host.waiting.append(turn)
        host.start_more()
        try:
            await turn
            yield
            host.answered()
        except (ImageError, LimitExceeded) as error:
            if not isinstance(error, FetchError) or error.code not in ("fetch_timeout", "fetch_unavailable"):
                host.answered()
            elif error.code == "fetch_timeout" and turn.exception() is None:
                host.timed_out(error)
            raise
        finally:
            if turn in host.waiting:
                host.waiting.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                host.fetching -= 1
            host.start_more()
            if not host.fetching and not host.waiting:
                self._hosts.pop(name, None)
