"""Which images may enter an Ingress. Three classes, each with a bound and a pace of its own: none keeps the others out.

    ordinary   at most max_images_in_flight   grouped, see deployments.grouping
    url        at most max_urls               max_urls_in_flight at a time; each holds a call while it is fetched
    large      at most max_large_images       one at a time; ordinary images and URLs become large when a loader says so

What finds no room is refused at once, and so is what would not be done before its deadline. With several keys, one caller holds at most
its share of a class.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from deployments.pace import Pace
from deployments.settings import IngressSettings
from deployments.task import ImageInput, RequestContext
from pipeline.errors import Overloaded
from pipeline.images.source import looks_like_url

MAX_RETRY_AFTER_S = 60

ExpectedS = Callable[[int, str], float]
"""Seconds until so many more images of this caller would be done; 0 where nothing is ahead of them, or nothing is known."""


class Lane:
    """The images of one class that are here.

    Args:
        name: for metrics.
        most: images at a time, waiting ones included.
        at_a_time: of those, how many are worked on; the others wait in `turn`.
        expected_s: where the class has a queue elsewhere, what that expects.
    """

    def __init__(self, name: str, most: int, at_a_time: int = 1, expected_s: ExpectedS | None = None) -> None:
        self.name, self.most = name, most
        self.expected_s = expected_s or self._own_expectation_s
        self._by_caller: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(at_a_time)
        self._pace, self._working = Pace(), 0

    @property
    def here(self) -> int:
        """Images of this class."""
        return self._by_caller.total()

    def room(self, caller: str, most_of_a_caller: int) -> int:
        """How many more images of this caller may enter."""
        return min(self.most - self.here, most_of_a_caller - self._by_caller[caller])

    def count(self, caller: str, change: int) -> None:
        """Images enter, or leave (negative)."""
        self._by_caller[caller] += change
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; within, the image is worked on."""
        async with self._turns:
            if not self._working:
                self._pace.begin()
            self._working += 1
            try:
                yield
            except Exception:
                self._pace.done(1)
                raise
            else:
                self._pace.done(1)
            finally:
                self._working -= 1

    def _own_expectation_s(self, images: int, _caller: str) -> float:
        return (self.here + images) * self._pace.seconds_an_item if self.here else 0.0


class Place:
    """One admitted image's place in its class."""

    def __init__(self, lane: Lane, caller: str) -> None:
        self.lane, self._caller = lane, caller
        lane.count(caller, 1)

    def move(self, lane: Lane) -> None:
        """The image turned out to be of another class, whose room was checked."""
        self.leave()
        self.lane = lane
        lane.count(self._caller, 1)

    def leave(self) -> None:
        """The image is done, or given up."""
        self.lane.count(self._caller, -1)


class Admission:
    """The classes of one Ingress replica.

    Args:
        settings: the section `ingress`.
        ordinary_s: what the queue of ordinary images expects.
    """

    def __init__(self, settings: IngressSettings, ordinary_s: ExpectedS) -> None:
        self._settings = settings
        self.ordinary = Lane("ordinary", settings.max_images_in_flight, expected_s=ordinary_s)
        self.urls = Lane("url", settings.max_urls, settings.max_urls_in_flight)
        self.large = Lane("large", settings.max_large_images)
        self.lanes = (self.ordinary, self.urls, self.large)

    def reconfigure(self, settings: IngressSettings) -> None:
        """Take other bounds; who is here stays. `max_urls_in_flight` stays, too."""
        self._settings = settings
        self.ordinary.most, self.urls.most = settings.max_images_in_flight, settings.max_urls
        self.large.most = settings.max_large_images

    @contextmanager
    def admitted(self, images: Sequence[ImageInput], context: RequestContext) -> Iterator[list[Place]]:
        """Within: all images of a request are here; yields the place of each.

        Raises:
            Overloaded: there is no room for all of them, or not enough time.
        """
        lanes = [self.urls if isinstance(image, str) and looks_like_url(image) else self.ordinary for image in images]
        for lane, count in Counter(lanes).items():
            self.check(lane, count, context)
        places = [Place(lane, context.caller) for lane in lanes]
        try:
            yield places
        finally:
            for place in places:
                place.leave()

    def check(self, lane: Lane, images: int, context: RequestContext) -> None:
        """Raise Overloaded where so many more images have no room, or would be late."""
        self.check_room(lane, images, context.caller)
        expected_s = lane.expected_s(images, context.caller)
        if expected_s > context.remaining_s > 0:
            raise self.refusal(expected_s)

    def check_room(self, lane: Lane, images: int, caller: str) -> None:
        """Raise Overloaded where so many more images have no room."""
        share = self._settings.max_share_per_key if caller else 1.0
        most_of_a_caller = max(int(share * lane.most), min(lane.most, self._settings.max_images_per_request))
        if images > lane.room(caller, most_of_a_caller):
            raise self.refusal(lane.expected_s(0, caller))

    def refusal(self, expected_s: float = 0.0) -> Overloaded:
        """The error of an image that finds no room.

        Args:
            expected_s: until what is ahead is done, seconds. The client is told to come back then, or up to half as long again later:
                those that are refused together do not all come back together.
        """
        soonest_s = max(self._settings.retry_after_s, min(math.ceil(expected_s), MAX_RETRY_AFTER_S))
        return Overloaded(
            "The service is at its limit; try again later.",
            retry_after_s=random.randint(soonest_s, soonest_s + (soonest_s + 1) // 2),
            status=self._settings.overload_status,
        )
