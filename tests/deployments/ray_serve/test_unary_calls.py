"""Calls of the deployments' handles: unary, and counted by the router."""

import asyncio
import uuid
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import RunningReplica

from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.polygonizer import Polygonizer
from deployments.ray_serve import pending_calls, unary_calls
from deployments.ray_serve.pending_calls import PendingCalls
from deployments.ray_serve.unary_calls import UnaryReplica, UnaryRequestRouter, _call_when_done
from deployments.task import ImageTask, RequestContext, ScoreOptions
from pipeline.types import DetectOptions, OutlineOptions

DETECTOR = DeploymentID(name="Detector")
SHUTTING_DOWN = RuntimeError("Core worker is shutting down.")
MOST = 3
"""max_ongoing_requests of the replicas."""


class Replica(UnaryReplica):
    """Without an actor."""

    def __init__(self, name):
        self.name = name
        self._replica_info = SimpleNamespace(
            replica_id=ReplicaID(name, DETECTOR),
            max_ongoing_requests=MOST,
            multiplexed_model_ids=[],
            node_id="node 2" if name == "c" else "node 1",
            availability_zone=None,
        )
        self._multiplexed_model_ids = set()


class Clock:
    """`time.monotonic()`, set by a test."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pending_calls.time, "monotonic", clock)
    return clock


@pytest.fixture
def sent(monkeypatch):
    """What Ray's replica was asked to send: (call, with_rejection)."""
    sent = []

    def try_send_request(_replica, call, with_rejection):
        sent.append((call, with_rejection))
        return SimpleNamespace(get_rejection_response=None, to_object_ref=lambda: None)

    monkeypatch.setattr(pending_calls, "PENDING_CALLS", PendingCalls())
    monkeypatch.setattr(RunningReplica, "try_send_request", try_send_request)
    return sent


def call(*, is_streaming):
    metadata = SimpleNamespace(is_streaming=is_streaming, _by_reference=True, internal_request_id=uuid.uuid4().hex)
    return SimpleNamespace(metadata=metadata, args=[["tasks"]])


def test_a_call_is_unary_and_accepted_at_once(sent):
    replica = Replica("a")
    asked = call(is_streaming=False)
    answer = asyncio.run(replica.try_send_request(asked, with_rejection=True).get_rejection_response())
    assert sent == [(asked, False)]
    assert answer.accepted
    assert answer.num_ongoing_requests == 1


def test_a_call_for_a_stream_is_rays(sent):
    asked = call(is_streaming=True)
    assert Replica("a").try_send_request(asked, with_rejection=True).get_rejection_response is None
    assert sent == [(asked, True)]


def test_a_call_by_grpc_is_rays(sent):
    asked = call(is_streaming=False)
    asked.metadata._by_reference = False
    assert Replica("a").try_send_request(asked, with_rejection=True).get_rejection_response is None
    assert sent == [(asked, True)]


def router_of(*names, clock=None):
    """A router with replicas that have no actor, in the running event loop."""
    router = UnaryRequestRouter(
        deployment_id=DETECTOR,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        get_curr_time_s=clock,
    )
    router.update_replicas([Replica(name) for name in names])
    return router


async def send(router, replica):
    """A call, as Ray Serve's router makes it; returns its id."""
    sent = call(is_streaming=False)
    result = replica.try_send_request(sent, with_rejection=True)
    router.on_send_request(replica.replica_id)
    router.on_new_queue_len_info(replica.replica_id, (await result.get_rejection_response()).num_ongoing_requests)
    return sent.metadata.internal_request_id


def complete(router, replica, call_id):
    """The end of a call, as Ray Serve tells its router."""
    router.on_request_completed(replica.replica_id, call_id)
    router.decrement_queue_len_cache(replica.replica_id)


@pytest.mark.usefixtures("sent")
def test_a_replica_with_max_ongoing_requests_is_not_chosen_until_one_completed():
    async def choices():
        router = router_of("a")
        (replica,) = router.curr_replicas.values()
        calls = [await send(router, replica) for _ in range(MOST)]
        full = await router._select_from_candidate_replicas([replica], 0)
        complete(router, replica, calls[0])
        return replica, full, await router._select_from_candidate_replicas([replica], 0)

    replica, full, later = asyncio.run(choices())
    assert full is None
    assert later is replica


@pytest.mark.usefixtures("sent")
def test_calls_that_take_longer_than_the_cache_of_counts_are_still_counted():
    """Of two replicas, one with two calls of a minute and one with a new call, the second is chosen."""
    now = 0.0

    async def choice():
        nonlocal now
        router = router_of("a", "b", clock=lambda: now)
        a, b = router.curr_replicas.values()
        await send(router, a)
        await send(router, a)
        now = 60.0
        await send(router, b)
        await router._probe_queue_lens([a], 0)
        return b, await router._select_from_candidate_replicas([a, b], 0)

    b, chosen = asyncio.run(choice())
    assert chosen is b


@pytest.mark.usefixtures("sent")
def test_silent_replicas_and_nodes_get_no_calls_while_others_answer(clock):
    """If all are silent, all are used."""

    async def candidates():
        router = router_of("a", "b", "c")
        a, b, c = router.curr_replicas.values()
        names, seen = {one.replica_id: one.name for one in (a, b, c)}, []

        def note():
            seen.append("".join(sorted(names[one] for one in router.apply_locality_routing())))

        first, *_ = [await send(router, one) for one in (a, a, b)]
        clock.now = 0.3
        complete(router, a, first)
        for clock.now in (0.9, 1.2, 1.5):
            note()
        await send(router, c)
        clock.now = 3.0
        note()
        return seen

    # a and b are on one node, c on another
    assert asyncio.run(candidates()) == ["abc", "ac", "c", "abc"]


@pytest.mark.usefixtures("sent")
def test_on_one_node_a_silent_replica_gets_no_calls_although_its_node_is_silent(clock):
    async def candidates():
        router = router_of("a", "b")
        a, b = router.curr_replicas.values()
        await send(router, a)
        clock.now = 5.0
        return router.apply_locality_routing(), {b.replica_id}

    chosen, other = asyncio.run(candidates())
    assert chosen == other


@pytest.mark.usefixtures("sent")
def test_a_call_that_could_not_be_sent_is_not_counted():
    async def count():
        router = router_of("a")
        (replica,) = router.curr_replicas.values()
        router.on_request_completed(replica.replica_id, "never sent")
        await send(router, replica)
        return pending_calls.PENDING_CALLS.count(replica.replica_id)

    assert asyncio.run(count()) == 1


@pytest.mark.usefixtures("sent")
@pytest.mark.parametrize(
    ("payload", "large", "silent"), [("aGk=", False, True), ("https://example.com/a.jpg", False, False), (b"jpeg", True, False)]
)
def test_a_slow_url_or_a_large_image_makes_no_replica_silent(clock, payload, large, silent):
    replica = Replica("a")
    sent = call(is_streaming=False)
    options = ScoreOptions(DetectOptions(), OutlineOptions())
    sent.args = [[ImageTask(payload, options, RequestContext("id", 0.0), large=large)]]
    replica.try_send_request(sent, with_rejection=True)
    clock.now = 5.0
    assert (replica.replica_id in pending_calls.PENDING_CALLS.silent()[0]) is silent


class Reference:
    """An ObjectRef of a call that is done; `error` if the wait for it failed."""

    def __init__(self, result, error=None):
        self.result, self._error, self.fetched = result, error, False

    def _on_ready(self, callback):
        callback(self._error)

    def _on_completed(self, callback):
        self.fetched = True
        callback(self.result)


@pytest.mark.parametrize(
    ("reference", "told", "fetched"),
    [
        (Reference("small"), "small", True),
        (Reference("pixels"), None, False),
        (Reference("small", SHUTTING_DOWN), SHUTTING_DOWN, False),
    ],
)
def test_the_end_of_a_call_is_reported_without_fetching_pixels(monkeypatch, reference, told, fetched):
    """A result in Ray's object store stays there; a small one, or an error, is in this process anyway."""

    monkeypatch.setattr(unary_calls, "_is_in_memory", lambda ref: ref.result == "small")
    seen = []
    _call_when_done(reference, seen.append)
    assert seen == [told]
    assert reference.fetched is fetched


@pytest.mark.parametrize("deployment", [ImageLoader, Detector, Polygonizer])
def test_every_stage_is_called_so(deployment):
    """By a copy of the class, which Ray Serve pickles by value; all copies count in the same place."""
    router = deployment._deployment_config.request_router_config.get_request_router_class()
    assert (router.__module__, router.__name__) == (UnaryRequestRouter.__module__, UnaryRequestRouter.__name__)
    assert router.on_request_completed.__globals__["pending_calls"] is pending_calls
