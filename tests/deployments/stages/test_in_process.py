"""Stages in this process behave to the scoring graph as handles do: chaining, errors in place, cancelling."""

import asyncio
import time

import pytest

from deployments.scoring import grouping
from deployments.scoring.graph import ScoringGraph
from deployments.settings import IngressSettings
from deployments.stages.in_process import LocalHandle
from deployments.task import RequestContext, ScoreOptions
from pipeline.errors import DeadlineExceeded, StageFailed
from pipeline.types import DetectOptions, OutlineOptions


class Stage:
    """Adds its letter to every image, after a while."""

    def __init__(self, letter, seconds=0.0, error=None):
        self.letter, self.seconds, self.error, self.cancelled = letter, seconds, error, False

    async def _work(self, tasks):
        if self.error:
            raise self.error
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return [task.after(task.payload + self.letter, {}) for task in tasks]

    async def outline(self, tasks):
        return [task.payload for task in await self._work(tasks)]

    load = detect = _work


def graph(*stages):
    return ScoringGraph(*map(LocalHandle, stages), IngressSettings())


def score(scoring, images, seconds=5.0, **options):
    return scoring.score(
        images, ScoreOptions(DetectOptions(), OutlineOptions(), **options), RequestContext("r", time.time() + seconds)
    )


async def test_images_pass_the_stages_in_order():
    """Each response is the next call's argument."""
    assert await score(graph(Stage("l"), Stage("d"), Stage("p")), ["1", "2"]) == ["1ldp", "2ldp"]


async def test_a_stage_that_raises_is_a_500():
    """A bug in a stage names nothing of the inside."""
    with pytest.raises(StageFailed) as caught:
        await score(graph(Stage("l"), Stage("d", error=ValueError("/secret")), Stage("p")), ["1"])
    assert "/secret" not in caught.value.message


async def test_an_image_that_was_fetched_waits_until_its_deadline(monkeypatch):
    """As any other: with all stages in this process, no other replica could take its call."""
    monkeypatch.setattr(grouping, "HANG_S", 0.02)

    class Fetching(Stage):
        async def fetch(self, tasks):
            return [task.after(b"body", {}) for task in tasks]

    detector = Stage(b"d")
    scoring = graph(Fetching(b"l"), detector, Stage(b"p"))
    for detector.seconds in (0.0, 0.2):
        assert await score(scoring, ["https://example.com/1.jpg"]) == [b"bodyldp"]


async def test_a_deadline_cancels_the_stage_that_works():
    """And those before it have nothing left to do."""
    slow = Stage("d", seconds=60)
    with pytest.raises(DeadlineExceeded):
        await score(graph(Stage("l"), slow, Stage("p")), ["1"], seconds=0.05)
    await asyncio.sleep(0.01)
    assert slow.cancelled
