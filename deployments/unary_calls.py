"""A request router for Ray Serve: calls of a stage are unary, one call of an actor with one result.

Ray Serve 2.60 itself makes each call a stream of two items: whether the replica accepts it, then the result. At the end of a stream Ray
blocks the event loop of the replica until the caller has acknowledged every item (`WaitAllObjectsReported` in Ray's `_raylet.pyx`). So one
caller that does not answer, such as a stopped Ingress, stops every replica that works for it. The result of a unary call waits for nobody.

Nothing is lost with the first item: the Ingress bounds its calls, and a replica that already has `max_ongoing_requests` lets further calls
wait.
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.common import ReplicaQueueLengthInfo, RunningReplicaInfo
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter  # type: ignore[attr-defined]
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

UNKNOWN = -1
"""Queue length of a replica in the answer to a unary call."""


class UnaryReplica(RunningReplica):
    """A replica, as the router sees it. Its calls are unary, except those that ask for a stream (`stream=True`, HTTP by Ray's proxy)."""

    async def get_queue_len(self, *, deadline_s: float) -> int:  # noqa: ARG002 - as Ray calls it
        """Called by the router for a replica of which it has no count: 0. From there on the router counts the calls of this process."""
        return 0

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        """Send a call. The router waits for the answer whether it is accepted, if `with_rejection`; a unary call always is."""
        if pr.metadata.is_streaming:
            return super().try_send_request(pr, with_rejection)
        result: Any = super().try_send_request(pr, with_rejection=False)
        result.get_rejection_response = _accepted
        return result


class UnaryRequestRouter(PowerOfTwoChoicesRequestRouter):
    """Ray Serve's default router: of two replicas, chosen at random, the one with fewer calls. It counts the calls of this process only."""

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """Called by Ray Serve for each replica of the deployment."""
        return UnaryReplica(replica_info)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Called with the answer to a call; that of a unary call says nothing about the replica's queue."""
        if num_ongoing_requests != UNKNOWN:
            super().on_new_queue_len_info(replica_id, num_ongoing_requests)


async def _accepted() -> ReplicaQueueLengthInfo:
    return ReplicaQueueLengthInfo(accepted=True, num_ongoing_requests=UNKNOWN)


UNARY_CALLS = RequestRouterConfig(request_router_class=UnaryRequestRouter)  # type: ignore[arg-type]
"""For `@serve.deployment(request_router_config=...)` of a stage. HAProxy calls the Ingress, so Ray Serve refuses another router for it."""
