"""Lanes without a graph: how the images of a class that works on several at a time start, and what a refusal says."""

import asyncio
import time

import pytest

from deployments.scoring.admission import MAX_SPACING_S, STARTS_AT_ONCE, Admission, SlotLane
from deployments.settings import IngressSettings
from deployments.task import RequestContext
from pipeline.errors import Overloaded
from tests.support.event_loop import settle


async def start_together(lane, count, work_s, caller=""):
    """Seconds after which each of `count` images that come together started."""
    began, started = time.monotonic(), []

    async def one():
        async with lane.slot(caller):
            started.append(time.monotonic() - began)
            await asyncio.sleep(work_s)

    await asyncio.gather(*(one() for _ in range(count)))
    return started


async def test_a_burst_is_spread():
    """The first ones start at once, the others at intervals; so what ends together is not replaced together."""
    started = await start_together(SlotLane("url", 256, slots=32), 20, 1.0)
    assert started == pytest.approx([max(0, place - STARTS_AT_ONCE + 1) * MAX_SPACING_S for place in range(20)])


async def test_fast_images_start_fast():
    """Once their pace is known, they start at up to twice that."""
    lane = SlotLane("url", 256, slots=32)
    await start_together(lane, STARTS_AT_ONCE, 0.008)  # one a millisecond
    assert (await start_together(lane, 20, 0.001))[-1] == pytest.approx((20 - STARTS_AT_ONCE) * 0.0005, rel=0.2)


async def test_a_lane_that_was_hardly_used_is_not_expected_to_be_slow():
    """Ten URLs came one after the other; those of the next request are fetched together."""
    lane = SlotLane("url", 256, slots=32)
    for _ in range(10):
        await start_together(lane, 1, 0.05)
    lane.add("", 1)
    assert lane.expected_s(64, "") == pytest.approx(65 / 32 * 0.05)


async def test_a_caller_is_expected_to_have_its_share_only():
    """Two of eight at a time."""
    lane = SlotLane("url", 256, slots=8)
    lane.set_share(0.25)
    await start_together(lane, 20, 0.05, "loud")
    lane.add("loud", 1)
    assert lane.expected_s(19, "loud") == pytest.approx(20 / 2 * 0.05, rel=0.1)


async def test_one_at_a_time_is_not_spread():
    """Large images wait for each other anyway."""
    assert await start_together(SlotLane("large", 16), 12, 0.001) == pytest.approx([place * 0.001 for place in range(12)])


async def test_images_cancelled_before_they_start_delay_no_others():
    """As the URLs of a client that sends many and hangs up, again and again."""
    lane = SlotLane("url", 256, slots=32)
    for _ in range(20):
        burst = [asyncio.create_task(start_together(lane, 1, 1.0)) for _ in range(64)]
        await settle()
        for task in burst:
            task.cancel()
        await asyncio.gather(*burst, return_exceptions=True)
    assert (await start_together(lane, 1, 0.0))[0] < 1.0 + 20 * STARTS_AT_ONCE * MAX_SPACING_S


@pytest.mark.parametrize(
    ("lane", "images", "caller", "reason"),
    [
        ("ordinary", 257, "", "(ingress.max_images_in_flight)"),
        ("url", 257, "a key", "(ingress.max_urls)"),
        ("large", 17, "", "(ingress.max_large_images)"),
        ("ordinary", 129, "a key", "(ingress.max_share_per_key of ingress.max_images_in_flight)"),
        ("ordinary", 1, "", "(the queue takes longer than the request's deadline)"),
    ],
)
def test_a_refusal_names_the_limit(lane, images, caller, reason):
    """So that an operator need not guess it from the dashboard."""
    lanes = Admission(IngressSettings(), lambda _images, _caller: 60.0)
    with pytest.raises(Overloaded) as refused:
        lanes.check(getattr(lanes, {"url": "urls"}.get(lane, lane)), images, RequestContext("id", time.time() + 5, caller))
    assert reason in refused.value.message
