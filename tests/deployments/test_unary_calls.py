"""Calls of the deployments' handles: unary, and counted by the router."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import RunningReplica

from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.polygonizer import Polygonizer
from deployments.unary_calls import UNKNOWN, UnaryReplica, UnaryRequestRouter


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
    replica = object.__new__(UnaryReplica)
    asked = call(is_streaming=False)
    answer = asyncio.run(replica.try_send_request(asked, with_rejection=True).get_rejection_response())
    assert sent == [(asked, False)]
    assert answer.accepted
    assert answer.num_ongoing_requests == UNKNOWN


def test_a_call_for_a_stream_is_rays(sent):
    replica = object.__new__(UnaryReplica)
    asked = call(is_streaming=True)
    assert replica.try_send_request(asked, with_rejection=True).get_rejection_response is None
    assert sent == [(asked, True)]


def test_the_router_keeps_its_count_when_a_call_is_accepted():
    """The count after two calls and their answers is two; the answer to a stream's call replaces it."""

    async def counts():
        router = UnaryRequestRouter(
            deployment_id=DeploymentID(name="Detector"),
            handle_source=DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
        )
        replica, seen = ReplicaID("a", DeploymentID(name="Detector")), []
        for length in (UNKNOWN, UNKNOWN, 7):
            router.on_send_request(replica)
            router.on_new_queue_len_info(replica, length)
            seen.append(router.replica_queue_len_cache.get(replica))
        return seen

    assert asyncio.run(counts()) == [1, 2, 7]


@pytest.mark.parametrize("deployment", [ImageLoader, Detector, Polygonizer])
def test_every_stage_is_called_so(deployment):
    config = deployment._deployment_config.request_router_config
    assert config.get_request_router_class() is UnaryRequestRouter
