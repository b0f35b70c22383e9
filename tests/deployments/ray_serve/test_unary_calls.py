"""Calls of the deployments' handles: unary, and counted by the router."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import RunningReplica

from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.polygonizer import Polygonizer
from deployments.ray_serve import unary_calls
from deployments.ray_serve.unary_calls import UnaryReplica, UnaryRequestRouter

DETECTOR = DeploymentID(name="Detector")
MOST = 3
"""max_ongoing_requests of the replicas."""


class Replica(UnaryReplica):
    """Without an actor."""

    def __init__(self, name, pending):
        self._replica_info = SimpleNamespace(
            replica_id=ReplicaID(name, DETECTOR),
            max_ongoing_requests=MOST,
            multiplexed_model_ids=[],
            node_id=None,
            availability_zone=None,
        )
        self._multiplexed_model_ids = set()
        self._pending = pending


@pytest.fixture
def sent(monkeypatch):
    """What Ray's replica was asked to send: (call, with_rejection)."""
    sent = []

    def try_send_request(_replica, call, with_rejection):
        sent.append((call, with_rejection))
        return SimpleNamespace(get_rejection_response=None)

    monkeypatch.setattr(RunningReplica, "try_send_request", try_send_request)
    return sent


def call(*, is_streaming):
    return SimpleNamespace(metadata=SimpleNamespace(is_streaming=is_streaming))


def test_a_call_is_unary_and_accepted_at_once(sent):
    replica = Replica("a", {})
    asked = call(is_streaming=False)
    answer = asyncio.run(replica.try_send_request(asked, with_rejection=True).get_rejection_response())
    assert sent == [(asked, False)]
    assert answer.accepted
    assert answer.num_ongoing_requests == 1


def test_a_call_for_a_stream_is_rays(sent):
    asked = call(is_streaming=True)
    assert Replica("a", {}).try_send_request(asked, with_rejection=True).get_rejection_response is None
    assert sent == [(asked, True)]


def router_of(*names, clock=None):
    """A router with replicas that have no actor, in the running event loop."""
    router = UnaryRequestRouter(
        deployment_id=DETECTOR,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        get_curr_time_s=clock,
    )
    router.update_replicas([Replica(name, router._pending) for name in names])
    return router


async def send(router, replica):
    """A call, as Ray Serve's router makes it."""
    result = replica.try_send_request(call(is_streaming=False), with_rejection=True)
    router.on_send_request(replica.replica_id)
    router.on_new_queue_len_info(replica.replica_id, (await result.get_rejection_response()).num_ongoing_requests)


def complete(router, replica):
    """The end of a call, as Ray Serve tells its router."""
    router.on_request_completed(replica.replica_id, "an id")
    router.decrement_queue_len_cache(replica.replica_id)


@pytest.mark.usefixtures("sent")
def test_a_replica_with_max_ongoing_requests_is_not_chosen_until_one_completed():
    async def choices():
        router = router_of("a")
        (replica,) = router.curr_replicas.values()
        for _ in range(MOST):
            await send(router, replica)
        full = await router._select_from_candidate_replicas([replica], 0)
        complete(router, replica)
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
def test_a_silent_replica_gets_no_calls_while_another_one_answers(monkeypatch):
    """Silent: it has a call, and has completed none for a second, also not an older one. If all are silent, all are used."""
    now = 0.0
    monkeypatch.setattr(unary_calls.time, "monotonic", lambda: now)

    async def candidates():
        nonlocal now
        router = router_of("a", "b")
        a, b = router.curr_replicas.values()
        names, seen = {a.replica_id: "a", b.replica_id: "b"}, []

        def note():
            seen.append("".join(sorted(names[one] for one in router.apply_locality_routing())))

        for replica in (a, a, b):
            await send(router, replica)
        now = 0.9
        note()
        complete(router, a)
        now = 1.5
        note()
        await send(router, a)
        now = 2.0
        note()
        complete(router, b)
        note()
        return seen

    assert asyncio.run(candidates()) == ["ab", "a", "ab", "b"]


@pytest.mark.usefixtures("sent")
def test_no_count_is_kept_of_a_replica_without_calls():
    async def counts():
        router = router_of("a")
        (replica,) = router.curr_replicas.values()
        await send(router, replica)
        complete(router, replica)
        return router._pending, router.replica_queue_len_cache.get(replica.replica_id)

    assert asyncio.run(counts()) == ({}, 0)


@pytest.mark.parametrize("deployment", [ImageLoader, Detector, Polygonizer])
def test_every_stage_is_called_so(deployment):
    config = deployment._deployment_config.request_router_config
    assert config.get_request_router_class() is UnaryRequestRouter
