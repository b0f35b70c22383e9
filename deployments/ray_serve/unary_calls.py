"""A request router for Ray Serve: calls of a stage are unary, one call of an actor with one result.

Ray Serve 2.60 itself makes each call a stream of two items: whether the replica accepts it, then the result. At the end of a stream Ray
blocks the event loop of the replica until the caller has acknowledged every item (`WaitAllObjectsReported` in Ray's `_raylet.pyx`). So one
caller that does not answer, such as a stopped Ingress, stops every replica that works for it. The result of a unary call waits for nobody.

A unary call does not tell the caller how many calls the replica has. Each caller counts its own: it sends a replica at most
`max_ongoing_requests` at a time, and further calls wait in the caller, at most `max_queued_requests` of them. A replica that has
`max_ongoing_requests` from several callers lets the next ones wait.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ray.serve._private.common import ReplicaQueueLengthInfo, RunningReplicaInfo
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter  # type: ignore[attr-defined]
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

LEFT_OUT_AFTER_S = 1.0
"""A replica that has calls and has completed none for this time gets no further calls while another one completes some, seconds."""


@dataclass(slots=True)
class Pending:
    """The calls of this process that a replica has not completed.

    Args:
        count: how many; at least 1.
        heard_at: when the replica completed one, or was sent the first of them; `time.monotonic()`.
    """

    count: int
    heard_at: float


class UnaryReplica(RunningReplica):
    """A replica, as the router sees it. Its calls are unary, except those that ask for a stream (`stream=True`, HTTP by Ray's proxy).

    Args:
        pending: by replica, for those with calls.
    """

    def __init__(self, replica_info: RunningReplicaInfo, pending: dict[ReplicaID, Pending]) -> None:
        super().__init__(replica_info)
        self._pending = pending

    @property
    def _calls(self) -> int:
        pending = self._pending.get(self.replica_id)
        return pending.count if pending else 0

    async def get_queue_len(self, *, deadline_s: float) -> int:  # noqa: ARG002 - as Ray calls it
        """Called by the router for a replica that is full by its cached count, or whose cached count is old (10 s) or missing."""
        return self._calls

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        """Send a call. If `with_rejection`, the router then waits for the answer whether it is accepted; a unary call always is."""
        pending = self._pending.get(self.replica_id)
        if pending:
            pending.count += 1
        else:
            self._pending[self.replica_id] = Pending(1, time.monotonic())
        if pr.metadata.is_streaming:
            return super().try_send_request(pr, with_rejection)
        result: Any = super().try_send_request(pr, with_rejection=False)
        result.get_rejection_response = self._accepted
        return result

    async def _accepted(self) -> ReplicaQueueLengthInfo:
        return ReplicaQueueLengthInfo(accepted=True, num_ongoing_requests=self._calls)


class UnaryRequestRouter(PowerOfTwoChoicesRequestRouter):
    """Ray Serve's default router: of two replicas, chosen at random, the one with fewer calls. It counts the calls of this process only.

    A replica that has fallen silent, because it or its node is lost, is left out (LEFT_OUT_AFTER_S): Ray takes 3 to 9 s to remove it. An
    image that is retried would otherwise be sent to it again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._pending: dict[ReplicaID, Pending] = {}

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """Called by Ray Serve for each replica of the deployment."""
        return UnaryReplica(replica_info, self._pending)

    def apply_locality_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """Called by Ray Serve for the replicas among which it chooses: those that are not silent, or all of them."""
        replicas = super().apply_locality_routing(pending_request)
        silent_since = time.monotonic() - LEFT_OUT_AFTER_S
        silent = {one for one, pending in self._pending.items() if pending.heard_at < silent_since}
        return replicas - silent or replicas

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Ray Serve once for each `try_send_request`, when the call has a result or has failed."""
        super().on_request_completed(replica_id, internal_request_id)
        pending = self._pending[replica_id]
        pending.count -= 1
        pending.heard_at = time.monotonic()
        if not pending.count:
            del self._pending[replica_id]


UNARY_CALLS = RequestRouterConfig(request_router_class=UnaryRequestRouter)  # type: ignore[arg-type]
"""For `@serve.deployment(request_router_config=...)` of a stage. HAProxy calls the Ingress, so Ray Serve refuses another router for it."""
