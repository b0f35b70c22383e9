"""A request router for Ray Serve: calls of a stage are unary, one call of an actor with one result.

Ray Serve 2.60 itself makes each call a stream of two items: whether the replica accepts it, then the result. At the end of a stream Ray
blocks the event loop of the replica until the caller has acknowledged every item (`WaitAllObjectsReported` in Ray's `_raylet.pyx`). So one
caller that does not answer, such as a stopped Ingress, stops every replica that works for it. A unary call does not wait for an
acknowledgement.

A unary call does not tell the caller how many calls the replica has. Each caller counts its own (pending_calls): it sends a replica at
most `max_ongoing_requests` at a time, and further calls wait in the caller, at most `max_queued_requests` of them. A replica that has
`max_ongoing_requests` from several callers lets the next ones wait.

Ray Serve pickles this module by value, once for each stage, so it has no state of its own; pending_calls is imported by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.serve._private.common import ReplicaQueueLengthInfo, RunningReplicaInfo
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter  # type: ignore[attr-defined]
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from deployments.ray_serve import pending_calls
from deployments.task import ImageTask


class UnaryReplica(RunningReplica):
    """A replica, as the router sees it. Its calls are unary, except those that ask for a stream (`stream=True`, HTTP by Ray's proxy) and
    those by gRPC (`RAY_SERVE_USE_GRPC_BY_DEFAULT`).
    """

    async def get_queue_len(self, *, deadline_s: float) -> int:  # noqa: ARG002 - as Ray calls it
        """Called by the router for a replica that is full by its cached count, or whose cached count is old (10 s) or missing."""
        return pending_calls.PENDING_CALLS.count(self.replica_id)

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        """Send a call. If `with_rejection`, the router then waits for the answer whether it is accepted; a unary call always is."""
        unary = pr.metadata._by_reference and not pr.metadata.is_streaming
        result: Any = super().try_send_request(pr, with_rejection=with_rejection and not unary)
        reference: Any = None
        if unary:
            reference = result.to_object_ref()
            result.get_rejection_response = self._accepted
            result.add_done_callback = partial(_call_when_done, reference)
        call_id, is_timed = pr.metadata.internal_request_id, _is_timed(pr.args)
        pending_calls.PENDING_CALLS.sent(call_id, self.replica_id, self.node_id, reference, is_timed=is_timed)
        return result

    async def _accepted(self) -> ReplicaQueueLengthInfo:
        return ReplicaQueueLengthInfo(accepted=True, num_ongoing_requests=pending_calls.PENDING_CALLS.count(self.replica_id))


class UnaryRequestRouter(PowerOfTwoChoicesRequestRouter):
    """Ray Serve's default router: of two replicas, chosen at random, the one with fewer calls. It counts the calls of this process only.

    Replicas that have fallen silent, because they or their node are lost, are left out: Ray takes 3 to 9 s to remove them, and an image
    that is retried would be sent to them again.
    """

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """Called by Ray Serve for each replica of the deployment."""
        return UnaryReplica(replica_info)

    def apply_locality_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """Called by Ray Serve for the replicas among which it chooses: those that are neither silent nor on a silent node, else those
        that are not silent, else all of them.
        """
        candidates = super().apply_locality_routing(pending_request)
        replicas, nodes = pending_calls.PENDING_CALLS.silent()
        if not replicas:
            return candidates
        alive = candidates - replicas
        return {one for one in alive if self.curr_replicas[one].node_id not in nodes} or alive or candidates

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Ray Serve once for each `try_send_request`, when the call has a result or has failed."""
        super().on_request_completed(replica_id, internal_request_id)
        pending_calls.PENDING_CALLS.completed(replica_id, internal_request_id)


def _is_timed(arguments: Sequence[Any]) -> bool:
    """Whether a replica should complete a call with these arguments soon: it has images, and none of them may take long. (A later stage
    gets them by reference.)
    """
    lists = [argument for argument in arguments if isinstance(argument, list)]
    return bool(arguments) and not any(isinstance(task, ImageTask) and task.may_take_long for tasks in lists for task in tasks)


def _call_when_done(reference: ObjectRef[Any], callback: Callable[[Any], None]) -> None:
    """Call back when a call is done: with a small result or its error, or with None for a result in Ray's object store.

    Ray Serve's own way (`_on_completed`) fetches the result first: the pixels of every image would go to the node of the Ingress.
    """

    def ready(error: BaseException | None) -> None:
        if error is None and _is_in_memory(reference):
            reference._on_completed(callback)
        else:
            callback(error)

    reference._on_ready(ready)


def _is_in_memory(reference: ObjectRef[Any]) -> bool:
    """Whether an object that exists is in the memory of this process: a small one, or an error."""
    worker: Any = ray._private.worker.global_worker
    return bool(worker.core_worker.object_exists(reference, memory_store_only=True))


UNARY_CALLS = RequestRouterConfig(request_router_class=UnaryRequestRouter)  # type: ignore[arg-type]
"""For `@serve.deployment(request_router_config=...)` of a stage. HAProxy calls the Ingress, so Ray Serve refuses another router for it."""
