"""Grouping: single items when idle, full groups under load, limits, cancellation and failures."""

import asyncio
import contextvars
import math
import time

import pytest

from deployments.scoring.grouping import COUNTED_FOR_S, HANG_IF_OVERTAKEN_S, HANG_S, CallHung, Grouper, ReplicaLost
from deployments.scoring.pace import MEMORY_S
from deployments.settings import GroupSettings, ImageLoaderSettings
from pipeline.errors import DeadlineExceeded, Overloaded
from tests.support.event_loop import settle


class Carrier:
    """A dispatch that takes a set time and records its groups."""

    def __init__(self, step_s=0.0):
        self.groups = []
        self.cancelled = []
        self.in_flight = self.most_in_flight = 0
        self._step_s = step_s

    async def __call__(self, items):
        self.groups.append(list(items))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._step_s)
        except asyncio.CancelledError:
            self.cancelled.append(list(items))
            raise
        finally:
            self.in_flight -= 1
        return [ValueError(item) if str(item).startswith("bad") else f"{item}!" for item in items]


class GatedCarrier(Carrier):
    """Groups take until `gate` is set."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()

    async def __call__(self, items):
        done = await super().__call__(items)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.gate.wait()
        self.in_flight -= 1
        return done


async def sent(grouper, callers):
    """An item of each of these callers, with its name, once groups were formed."""
    senders = [asyncio.create_task(grouper.send(caller, caller=caller)) for caller in callers]
    for _ in range(10):
        await asyncio.sleep(0)
    return senders


async def send_all(grouper, items, **how):
    return await asyncio.gather(*(grouper.send(item, **how) for item in items))


async def test_an_idle_grouper_sends_at_once():
    """One item after the other, without waiting for more."""
    carrier = Carrier()
    grouper = Grouper(carrier, GroupSettings())
    assert [await grouper.send(item) for item in "abc"] == ["a!", "b!", "c!"]
    assert carrier.groups == [["a"], ["b"], ["c"]]


async def test_a_busy_service_fills_groups():
    """Items that arrive while two groups are in flight form the next ones; at most two groups, of at most four items."""
    carrier = Carrier(0.02)
    grouper = Grouper(carrier, GroupSettings(max_images=4, max_in_flight=2))
    senders = []
    for number in range(14):
        senders.append(asyncio.create_task(grouper.send(number)))
        await asyncio.sleep(0.001)
    assert await asyncio.gather(*senders) == [f"{number}!" for number in range(14)]
    assert carrier.groups[:2] == [[0], [1]]
    assert max(map(len, carrier.groups)) == 4
    assert len(carrier.groups) <= 6
    assert carrier.most_in_flight == 2
    assert [item for group in carrier.groups for item in group] == list(range(14))


async def test_a_large_item_has_a_group_of_its_own():
    """A group stays below its byte limit; a larger item is sent alone."""
    carrier = Carrier()
    grouper = Grouper(carrier, GroupSettings(max_mb=100e-6))
    sizes = [60, 30, 20, 500, 10]
    await asyncio.gather(*(grouper.send(size, size) for size in sizes))
    assert carrier.groups == [[60, 30], [20], [500], [10]]


async def test_alone_means_alone_and_at_once():
    """Also while the maximum number of groups is in flight."""
    carrier = Carrier(0.05)
    grouper = Grouper(carrier, GroupSettings(max_in_flight=1))
    first = asyncio.create_task(send_all(grouper, "ab"))
    await settle()
    await send_all(grouper, ["url 1", "url 2"], alone=True)
    assert carrier.groups == [["a", "b"], ["url 1"], ["url 2"]]
    await first


async def test_each_gets_its_own_outcome():
    """An error in an item's place is raised to its sender only."""
    outcomes = await asyncio.gather(
        *(Grouper(Carrier(), GroupSettings()).send(item) for item in ("a", "bad", "b")), return_exceptions=True
    )
    assert outcomes[0] == "a!"
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == "b!"


async def test_an_exception_of_dispatch_fails_only_its_group():
    """All senders of the group get the exception; the next group is sent."""
    calls = []

    async def dispatch(items):
        calls.append(items)
        if len(calls) == 1:
            raise RuntimeError("bug")
        return items

    grouper = Grouper(dispatch, GroupSettings(max_in_flight=1))
    outcomes = await asyncio.gather(*(grouper.send(item) for item in "ab"), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["bug", "bug"]
    assert await grouper.send("c") == "c"


@pytest.mark.parametrize("ending", ["cancelled by Ray", "too few outcomes"])
async def test_a_call_without_a_result_is_an_error_at_once(ending):
    """Its senders do not wait for their deadline; with all of a group's items or some."""

    async def dispatch(items):
        if ending == "cancelled by Ray":
            raise asyncio.CancelledError
        return items[:1]

    grouper = Grouper(dispatch, GroupSettings())
    async with asyncio.timeout(1):
        outcomes = await asyncio.gather(*(grouper.send(item) for item in "ab"), return_exceptions=True)
    assert isinstance(outcomes[-1], CallHung)
    assert isinstance(outcomes[0], CallHung) == (ending == "cancelled by Ray")


async def test_a_cancelled_waiting_item_is_not_sent():
    """The others are not affected."""
    carrier = GatedCarrier()
    grouper = Grouper(carrier, GroupSettings(max_in_flight=1))
    first = asyncio.create_task(grouper.send("a"))
    await asyncio.sleep(0.005)
    waiting = [asyncio.create_task(grouper.send(item)) for item in "bc"]
    await asyncio.sleep(0.005)
    waiting[0].cancel()
    carrier.gate.set()
    assert await first == "a!"
    assert await waiting[1] == "c!"
    assert carrier.groups == [["a"], ["c"]]


async def test_a_group_is_cancelled_when_all_its_senders_are():
    """One remaining sender keeps it running; when the last one is cancelled, so is the group."""
    carrier = Carrier(0.05)
    grouper = Grouper(carrier, GroupSettings())
    stays, leaves = (asyncio.create_task(grouper.send(item)) for item in "ab")
    await settle()
    leaves.cancel()
    assert await stays == "a!"
    assert carrier.cancelled == []
    both = [asyncio.create_task(grouper.send(item)) for item in "cd"]
    await settle()
    for sender in both:
        sender.cancel()
    await settle()
    assert carrier.cancelled == [["c", "d"]]
    assert await grouper.send("e") == "e!"


async def test_a_group_runs_outside_the_context_of_a_request():
    """The call runs outside the context of the first sender: Ray Serve would cancel it with that request."""
    request = contextvars.ContextVar("request", default="none")
    seen = []

    async def dispatch(items):
        seen.append(request.get())
        return items

    request.set("a request")
    await Grouper(dispatch, GroupSettings()).send("a")
    assert seen == ["none"]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
async def test_one_request_makes_full_groups(count):
    """All images of a request are there before the first group leaves."""
    carrier = Carrier(0.001)
    await send_all(Grouper(carrier, GroupSettings()), range(count))
    assert len(carrier.groups) == -(-count // 8)


async def test_expected_time_follows_the_pace():
    """Groups of up to 4 take 20 ms, one at a time: 5 ms an item once that was seen; nothing is expected while idle."""
    grouper = Grouper(Carrier(0.02), GroupSettings(max_images=4, max_in_flight=1))
    assert grouper.expected_s(100) == 0
    await send_all(grouper, range(40))
    assert grouper.expected_s(100) == 0
    senders = asyncio.gather(*(grouper.send(number) for number in range(20)))
    await asyncio.sleep(0.001)
    assert grouper.expected_s(20) == pytest.approx(40 * 0.005)
    await senders


@pytest.mark.parametrize(
    ("outcome", "counts"), [(ValueError("bad"), True), (Overloaded("full"), False), (DeadlineExceeded("late"), False)], ids=repr
)
async def test_only_images_with_an_outcome_of_their_own_count_for_the_pace(outcome, counts):
    """Refused images count; cancelled ones, and those that failed because of the service, do not."""

    async def dispatch(items):
        await asyncio.sleep(0.01)
        return [outcome for _ in items]

    grouper = Grouper(dispatch, GroupSettings(max_images=4, max_in_flight=1))
    await asyncio.gather(*(grouper.send(number) for number in range(40)), return_exceptions=True)
    given_up = [asyncio.create_task(grouper.send(number)) for number in range(40)]
    await asyncio.sleep(0.001)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    last = asyncio.create_task(grouper.send(0))
    await asyncio.sleep(0)
    assert (grouper.expected_s(100) > 0) == counts
    with pytest.raises(type(outcome)):
        await last


async def test_idle_time_beside_a_hung_group_does_not_count():
    """Beyond the time constant of the pace."""
    hang = asyncio.Event()

    async def dispatch(items):
        await (hang.wait() if items[0] == "hung" else asyncio.sleep(0.002))
        return items

    grouper = Grouper(dispatch, GroupSettings(max_images=1, max_in_flight=1))
    hung = asyncio.create_task(grouper.send("hung", min_hang_s=math.inf))
    await asyncio.sleep(1.2 * MEMORY_S)
    for number in range(20):
        await grouper.send(number)
        await asyncio.sleep(0.05)
    last = asyncio.create_task(grouper.send("last"))
    await asyncio.sleep(0)
    assert grouper.expected_s(0) == pytest.approx(2 * 0.002)  # two items ahead, not the pauses of 50 ms between them
    hang.set()
    await asyncio.gather(hung, last)


async def test_waiting_for_a_lost_replica_does_not_count_for_the_pace():
    """Twenty items take 2 ms each; then one waits 0.3 s for a replica that is lost."""

    async def dispatch(items):
        await asyncio.sleep(0.3 if items[0] == "lost" else 0.002)
        return [ReplicaLost("The replica died.") if item == "lost" else item for item in items]

    grouper = Grouper(dispatch, GroupSettings(max_images=1, max_in_flight=1))
    for number in range(20):
        await grouper.send(number)
    with pytest.raises(ReplicaLost):
        await grouper.send("lost")
    senders = [asyncio.create_task(grouper.send(number)) for number in range(20)]
    await settle()
    assert grouper.expected_s(0) == pytest.approx(20 * 0.002)
    await asyncio.gather(*senders)


async def test_the_pace_of_a_slow_service():
    """Its groups always take longer than COUNTED_FOR_S, but that does not count as idle time."""
    grouper = Grouper(Carrier(2 * COUNTED_FOR_S), GroupSettings(max_images=4, max_in_flight=1))
    senders = [asyncio.create_task(grouper.send(number)) for number in range(200)]
    await asyncio.sleep(20.5 * COUNTED_FOR_S)  # two groups in flight, each sent COUNTED_FOR_S after the one before
    done = sum(task.done() for task in senders)
    assert done == 19 * 4
    assert grouper.expected_s(0) / (200 - done) == pytest.approx(COUNTED_FOR_S / 4, rel=0.1)
    for task in senders:
        task.cancel()
    await asyncio.gather(*senders, return_exceptions=True)


async def test_items_sent_alone_do_not_count_for_the_pace():
    """A URL that takes long does not make the service look slow or full."""
    grouper = Grouper(Carrier(0.001), GroupSettings())
    for _ in range(4):
        await send_all(grouper, range(8))
    slow = asyncio.create_task(grouper.send("url", alone=True))
    await asyncio.sleep(0)
    assert grouper.expected_s(1) == 0
    await slow


async def test_a_hung_group_does_not_block_others():
    """A call to a silent node: the next group is sent anyway, and the call's images still get their answer."""
    hang = asyncio.Event()

    async def dispatch(items):
        if items[0] == "hung":
            await hang.wait()
        return items

    grouper = Grouper(dispatch, GroupSettings(max_in_flight=1))
    hung = asyncio.create_task(grouper.send("hung"))
    await asyncio.sleep(0.001)
    async with asyncio.timeout(1.1 * COUNTED_FOR_S):
        assert [await grouper.send(item) for item in "ab"] == ["a", "b"]
        hang.set()
        assert await hung == "hung"


class Silent:
    """Dispatches all items except those that begin with `hung`, which never return."""

    def __init__(self):
        self.given_up = []

    async def __call__(self, items):
        if str(items[0]).startswith("hung"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.given_up += items
                raise
        return items


@pytest.mark.parametrize("alone", [False, True], ids=["of a group", "alone"])
async def test_a_call_that_later_ones_overtake_is_cancelled(alone):
    """Its senders can retry long before Ray detects that the replica is silent."""
    dispatch = Silent()
    grouper = Grouper(dispatch, GroupSettings(max_in_flight=1))
    hung = [asyncio.create_task(grouper.send(item, alone=alone)) for item in ("hung 1", "hung 2")]
    await asyncio.sleep(HANG_IF_OVERTAKEN_S + 0.01)
    assert not any(task.done() for task in hung)  # nothing was sent later: maybe all replicas are slow
    async with asyncio.timeout(0.01):
        assert await grouper.send("later") == "later"
        outcomes = await asyncio.gather(*hung, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CallHung, CallHung]
    assert outcomes[0] is not outcomes[1]
    await asyncio.sleep(0)
    assert sorted(dispatch.given_up) == ["hung 1", "hung 2"]
    assert await grouper.send("next") == "next"


@pytest.mark.parametrize("min_hang_s", [0.0, 20.0], ids=["of a group", "one that may take long"])
async def test_a_hung_call_is_cancelled_later_if_no_other_is_done(min_hang_s):
    """The only call was sent to the silent replica of two."""
    grouper = Grouper(Silent(), GroupSettings())
    assert await grouper.send("first") == "first"
    began = time.monotonic()
    with pytest.raises(CallHung, match="did not return"):
        await grouper.send("hung", alone=bool(min_hang_s), min_hang_s=min_hang_s)
    assert time.monotonic() - began == pytest.approx(max(HANG_S, min_hang_s))


async def test_a_slow_service_cancels_no_calls():
    """If calls take seconds, one that takes a little longer than a later one does not count as hung; nor does one with more patience."""
    seconds = {"warm": HANG_S, "slow": 1.5 * HANG_S, "later": HANG_S, "url": 5 * HANG_S}

    async def dispatch(items):
        await asyncio.sleep(seconds[items[0]])
        return items

    grouper = Grouper(dispatch, GroupSettings(max_in_flight=1))
    url = asyncio.create_task(grouper.send("url", alone=True, min_hang_s=10 * HANG_S))
    await grouper.send("warm")
    slow = asyncio.create_task(grouper.send("slow"))
    await asyncio.sleep(0.01)
    await grouper.send("later")
    assert await slow == "slow"
    for _ in range(4):
        await grouper.send("warm")
    assert await url == "url"


@pytest.mark.parametrize("turns", range(5))
async def test_a_group_cancelled_before_it_began_makes_room(turns):
    """The sender is cancelled after 0, 1, 2 ... iterations of the event loop; in one of them the group exists but has not begun."""
    carrier = Carrier(0.001)
    grouper = Grouper(carrier, GroupSettings(max_in_flight=1))
    sender = asyncio.create_task(grouper.send("gone"))
    for _ in range(turns):
        await asyncio.sleep(0)
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)
    async with asyncio.timeout(5):
        assert await grouper.send("next") == "next!"


async def test_a_flood_delays_its_own_caller():
    """Forty items of one caller wait; two items of another are sent beside its first group, as `expected_s` predicts."""
    carrier = Carrier(0.01)
    grouper = Grouper(carrier, GroupSettings(max_images=8, max_in_flight=1))
    await send_all(grouper, range(16))
    carrier.groups.clear()
    flood = [asyncio.create_task(grouper.send(f"flood {n}", caller="loud")) for n in range(40)]
    await asyncio.sleep(0)
    polite = [asyncio.create_task(grouper.send(f"polite {n}", caller="quiet")) for n in range(2)]
    await asyncio.sleep(0)
    assert grouper.expected_s(1, "quiet") < grouper.expected_s(1, "loud") / 3
    await asyncio.gather(*polite)
    assert len(carrier.groups) <= 3
    assert sum(str(item).startswith("polite") for group in carrier.groups[:2] for item in group) == 2
    await asyncio.gather(*flood)
    assert [item for group in carrier.groups for item in group if str(item).startswith("flood")] == [
        f"flood {n}" for n in range(40)
    ]


@pytest.mark.parametrize(
    ("waiting", "first_groups"),
    [("AAAAAAB", ["AAAA", "B", "AA"]), ("ABCDE", ["ABCD", "E"]), ("AAABBB", ["AAA", "BBB"]), ("BAAACD", ["BCD", "AAA"])],
)
async def test_nobody_waits_for_more_images_of_another_than_its_own(waiting, first_groups):
    """Single items share a group; those of a caller with several waiting are in groups of their own."""
    carrier = Carrier(0.001)
    grouper = Grouper(carrier, GroupSettings(max_images=4, max_in_flight=1))
    await asyncio.gather(*(grouper.send(f"{caller}{n}", caller=caller) for n, caller in enumerate(waiting)))
    assert ["".join(item[0] for item in group) for group in carrier.groups] == first_groups


async def test_a_caller_with_nothing_in_flight_does_not_wait():
    """Its item is sent beside the flood's group; then it waits its turn like all others, and there are never more than two groups of
    single items."""
    carrier = GatedCarrier()
    grouper = Grouper(carrier, GroupSettings(max_images=8, max_in_flight=1))
    senders = await sent(grouper, ["loud"] * 40)
    senders += await sent(grouper, ["second", "third"])
    senders += await sent(grouper, ["fourth"])
    assert carrier.groups[1:] == [["second", "third"], ["fourth"]]
    senders += await sent(grouper, ["second", "fifth"])
    assert len(carrier.groups) == 3
    carrier.gate.set()
    await asyncio.gather(*senders)
    assert carrier.most_in_flight == 3


async def test_a_single_item_does_not_wait_for_the_floods_of_several_callers():
    """Of three that flood, two have a group in flight; a fourth caller's single item is sent at once."""
    carrier = GatedCarrier()
    grouper = Grouper(carrier, GroupSettings(max_images=8, max_in_flight=1))
    senders = await sent(grouper, ["A", "B", "C"] * 20)
    assert carrier.groups == [["A"] * 8, ["B"] * 8]
    senders += await sent(grouper, ["polite"])
    assert carrier.groups[2:] == [["polite"]]
    carrier.gate.set()
    await asyncio.gather(*senders)


def test_a_hanging_decoder_is_answered_before_its_call_is_given_up():
    """Else the image would be retried, and hang further decoders."""
    assert ImageLoaderSettings().decode_timeout_s < HANG_S
