"""Counts the calls of this process that have no result yet; detects silent replicas and nodes."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.serve.request_router import ReplicaID

SILENT_S = 1.0
"""A replica that has a call and has completed none for this time is silent, seconds."""
SILENT_FACTOR, MEASURED_CALLS = 3.0, 32
"""But not before SILENT_FACTOR times the median time of the last MEASURED_CALLS calls of its deployment: a batch may take seconds."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call.

    Args:
        call_id: Ray Serve's internal request id. Calls of one request may share it.
        sent_at: `time.monotonic()`; inf for a call that is not timed.
        result: kept until the call is completed, because Ray does not report the end of a call whose result nobody holds. None for a
            stream.
    """

    call_id: str
    node_id: str
    sent_at: float
    result: ObjectRef[Any] | None


class PendingCalls:
    """Counts calls from when they are sent until they have a result or have failed. Not thread-safe."""

    def __init__(self) -> None:
        self._calls: defaultdict[ReplicaID, list[_Call]] = defaultdict(list)
        """The calls of each replica that has any, in the order in which they were sent."""
        self._last_completed_at: dict[ReplicaID | str, float] = {}
        """When a replica with calls, and a node, by its id, completed its last call."""
        self._took_s: defaultdict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=MEASURED_CALLS))

    def sent(
        self, call_id: str, replica_id: ReplicaID, node_id: str, result: ObjectRef[Any] | None, *, is_timed: bool = True
    ) -> None:
        """A replica was sent a call; its arguments exist already, as Ray Serve waits for them first.

        Args:
            call_id, result: as in `_Call`.
            is_timed: whether the replica is silent if the call takes long, and whether its time is measured.
        """
        sent_at = time.monotonic() if is_timed else math.inf
        self._calls[replica_id].append(_Call(call_id, node_id, sent_at, result))

    def completed(self, replica_id: ReplicaID, call_id: str) -> None:
        """A call has a result, has failed, or could not be sent."""
        calls = self._calls.get(replica_id, [])
        call = next((one for one in calls if one.call_id == call_id), None)
        if call is None:
            return
        now = self._last_completed_at[replica_id] = self._last_completed_at[call.node_id] = time.monotonic()
        if call.sent_at < math.inf:  # at most the limit: calls of a lost replica fail together, after seconds
            self._took_s[replica_id.deployment_id].append(min(now - call.sent_at, self._silent_after_s(replica_id)))
        calls.remove(call)
        if not calls:
            del self._calls[replica_id], self._last_completed_at[replica_id]

    def count(self, replica_id: ReplicaID) -> int:
        """Calls that the replica has not completed."""
        return len(self._calls.get(replica_id, ()))

    def silent(self) -> tuple[set[ReplicaID], set[str]]:
        """Replicas that have a timed call and have completed none for SILENT_S; nodes of such replicas of which no replica has
        completed a call for as long.
        """
        now = time.monotonic()
        replicas, nodes = set(), set()
        for replica_id, calls in self._calls.items():
            oldest = next((call for call in calls if call.sent_at < math.inf), None)
            if oldest is None or now - oldest.sent_at <= SILENT_S:
                continue
            limit_s = self._silent_after_s(replica_id)
            if now - max(oldest.sent_at, self._last_completed_at.get(replica_id, -math.inf)) > limit_s:
                replicas.add(replica_id)
                if now - self._last_completed_at.get(oldest.node_id, -math.inf) > limit_s:
                    nodes.add(oldest.node_id)
        return replicas, nodes

    def _silent_after_s(self, replica_id: ReplicaID) -> float:
        took_s = self._took_s[replica_id.deployment_id]
        return max(SILENT_S, SILENT_FACTOR * statistics.median(took_s)) if took_s else SILENT_S


PENDING_CALLS = PendingCalls()
"""The calls of this process to all stages: Ray Serve's routers for the stages run in one event loop."""
