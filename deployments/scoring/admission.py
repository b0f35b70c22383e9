"""Admission control of an Ingress replica. Three lanes of images, each with its own limit and pace, so that none blocks the others.

    ordinary   at most max_images_in_flight   grouped, see deployments.scoring.grouping
    url        at most max_urls               max_urls_in_flight at a time; each occupies a call while it is fetched
    large      at most max_large_images       one at a time: images that an ImageLoader reports as large, and those to draw on

A request is refused immediately if there is no room for its images, or if they would miss its deadline. With several keys, one caller may
hold at most its share of a lane.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext

from deployments.scoring.pace import Pace
from deployments.scoring.url_hosts import UrlHosts
from deployments.settings import IngressSettings
from deployments.task import ImageInput, RequestContext
from pipeline.errors import Overloaded
from pipeline.fair_queue import FairSlots
from pipeline.images.source import is_url

MAX_RETRY_AFTER_S = 60
LIMIT_OF = {"ordinary": "max_images_in_flight", "url": "max_urls", "large": "max_large_images"}
"""The setting of `ingress` that limits each lane."""

STARTS_AT_ONCE, MAX_SPACING_S = 8, 0.025
"""Limits bursts in lanes that work on several images at a time: STARTS_AT_ONCE images may start together, the others follow at twice the
current rate of the lane, at most MAX_SPACING_S apart. Each start costs 10 ms of CPU in all stages, and slow URLs end together: 32 that were
replaced together took both cores of a small machine for 0.3 s."""

ExpectedS = Callable[[int, str], float]
"""Takes a number of images and a caller; returns the seconds until they would be done; 0 if nothing is ahead of them or nothing is
known."""


class Lane:
    """Counts the admitted images of one lane.

    Args:
        name: for metrics.
        limit: largest number of admitted images, waiting ones included.
        expected_s: estimates how long further images would take.
    """

    def __init__(self, name: str, limit: int, expected_s: ExpectedS) -> None:
        self.name, self.limit, self.expected_s = name, limit, expected_s
        self._by_caller: Counter[str] = Counter()

    @property
    def admitted(self) -> int:
        """Number of images admitted and not done."""
        return self._by_caller.total()

    def room(self, caller: str, max_per_caller: int) -> int:
        """How many more images of this caller may be admitted."""
        return min(self.limit - self.admitted, max_per_caller - self._by_caller[caller])

    def add(self, caller: str, images: int) -> None:
        """Add images of a caller, or remove them (a negative number)."""
        self._by_caller[caller] += images
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class SlotLane(Lane):
    """A lane whose images wait for one of its slots.

    Args:
        name, limit: as of every lane.
        slots: how many images are worked on at a time.
    Attributes:
        hosts: of the URLs that are fetched or wait.
    """

    def __init__(self, name: str, limit: int, slots: int = 1) -> None:
        super().__init__(name, limit, self._expectation_s)
        self._slots, self._slot_count, self.hosts = FairSlots(slots), slots, UrlHosts()
        self._starts_left, self._counted_at = float(STARTS_AT_ONCE), 0.0
        self._pace, self._full_pace, self._working = Pace(), Pace(), 0
        """The pace now, and the pace with all slots of one caller in use."""

    def set_share(self, share: float) -> None:
        """Set the largest share of the slots of one caller, if there are several."""
        self._slots.max_per_caller = max(1, int(share * self._slot_count))

    @asynccontextmanager
    async def slot(self, caller: str = "", host: str = "") -> AsyncIterator[None]:
        """Wait until an image of this caller may be worked on; the context is the work.

        Args:
            caller: the image's.
            host: of a URL, as `url_host` names it.
        Raises:
            FetchError: the host does not answer.
        """
        async with self.hosts.turn(host) if host else nullcontext(), self._slots.held(caller):
            await self._start()
            if not self._working:
                self._pace.begin()
                self._full_pace.begin()
            self._work(1)
            done = 1
            try:
                yield
            except (asyncio.CancelledError, GeneratorExit):
                done = 0
                raise
            finally:
                self._work(-1, done)

    def _work(self, change: int, done: int = 0) -> None:
        """The number of images that are worked on changes; some are done."""
        self._full_pace.done(done, min(1.0, self._working / self._slots.max_per_caller))
        if done:
            self._pace.done(done)
        self._working += change

    async def _start(self) -> None:
        """Wait until the next image may start; a token bucket of STARTS_AT_ONCE starts."""
        if self._slot_count == 1:
            return
        spacing_s = min(self._pace.seconds_per_item / 2 or MAX_SPACING_S, MAX_SPACING_S)
        now = asyncio.get_running_loop().time()
        regained, self._counted_at = (now - self._counted_at) / spacing_s, now
        self._starts_left = min(self._starts_left + regained, STARTS_AT_ONCE) - 1
        try:
            await asyncio.sleep(-self._starts_left * spacing_s)
        except asyncio.CancelledError:
            self._starts_left += 1
            raise

    def _expectation_s(self, images: int, caller: str) -> float:
        waiting = self._slots.waiting
        ahead = self.admitted - self.hosts.waiting - len(waiting) + waiting.ahead_of(caller, images)
        return (ahead + images) * self._full_pace.seconds_per_item if ahead else 0.0


class Place:
    """One admitted image's place in its lane."""

    def __init__(self, lane: Lane, caller: str) -> None:
        self.lane, self._caller = lane, caller
        lane.add(caller, 1)

    def move(self, lane: Lane) -> None:
        """Move the image to another lane; the caller has checked that it has room."""
        self.leave()
        self.lane = lane
        lane.add(self._caller, 1)

    def leave(self) -> None:
        """Give the place back: the image is done or cancelled."""
        self.lane.add(self._caller, -1)


class Admission:
    """The lanes of one Ingress replica.

    Args:
        settings: the section `ingress`.
        ordinary_s: estimates the waiting time of ordinary images, which wait in the Grouper.
    """

    def __init__(self, settings: IngressSettings, ordinary_s: ExpectedS) -> None:
        self._settings = settings
        self.ordinary = Lane("ordinary", settings.max_images_in_flight, ordinary_s)
        self.urls = SlotLane("url", settings.max_urls, settings.max_urls_in_flight)
        self.large = SlotLane("large", settings.max_large_images)
        self.lanes: tuple[Lane, ...] = (self.ordinary, self.urls, self.large)
        self.urls.set_share(settings.max_share_per_key)

    def reconfigure(self, settings: IngressSettings) -> None:
        """Apply new limits; images already admitted stay. `max_urls_in_flight` does not change."""
        self._settings = settings
        self.ordinary.limit, self.urls.limit = settings.max_images_in_flight, settings.max_urls
        self.large.limit = settings.max_large_images
        self.urls.set_share(settings.max_share_per_key)

    @contextmanager
    def admitted(self, images: Sequence[ImageInput], context: RequestContext, *, pictures: bool = False) -> Iterator[list[Place]]:
        """Admit the images of a request for the duration of the context; yields the place of each.

        Args:
            pictures: their answers are pictures, so they are decoded at full size, as large images are.
        Raises:
            Overloaded: there is no room for all of them, or not enough time before the deadline.
        """
        others = self.large if pictures else self.ordinary
        lanes = [self.urls if is_url(image) else others for image in images]
        for lane, count in Counter(lanes).items():
            self.check(lane, count, context)
        places = [Place(lane, context.caller) for lane in lanes]
        try:
            yield places
        finally:
            for place in places:
                place.leave()

    def check(self, lane: Lane, images: int, context: RequestContext) -> None:
        """Raise Overloaded if there is no room for this many more images, or if they would miss the deadline."""
        self.check_room(lane, images, context.caller)
        expected_s = lane.expected_s(images, context.caller)
        if expected_s > context.remaining_s > 0:
            raise self.refusal(expected_s, "the queue takes longer than the request's deadline")

    def check_room(self, lane: Lane, images: int, caller: str) -> None:
        """Raise Overloaded if there is no room for this many more images."""
        share = self._settings.max_share_per_key if caller else 1.0
        max_per_caller = max(int(share * lane.limit), min(lane.limit, self._settings.max_images_per_request))
        if images > lane.room(caller, max_per_caller):
            of_key = "" if images > lane.limit - lane.admitted else "ingress.max_share_per_key of "
            raise self.refusal(lane.expected_s(0, caller), f"{of_key}ingress.{LIMIT_OF[lane.name]}")

    def refusal(self, expected_s: float = 0.0, reason: str = "a stage takes no more calls") -> Overloaded:
        """The error for an image that finds no room.

        Args:
            expected_s: seconds until the images ahead are done; becomes Retry-After. Up to half of it is added at random, so that clients
                refused together do not retry together.
            reason: the limit, for the message.
        """
        soonest_s = max(self._settings.retry_after_s, min(math.ceil(expected_s), MAX_RETRY_AFTER_S))
        return Overloaded(
            f"The service is at its limit ({reason}); try again later.",
            retry_after_s=random.randint(soonest_s, soonest_s + (soonest_s + 1) // 2),
            status=self._settings.overload_status,
        )
