"""Counts the calls of this process that have no result yet; tells silent replicas and nodes."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.serve.request_router import ReplicaID

SILENT_S = 1.0
"""A replica that has a call and has completed none for this time is silent, seconds."""
SILENT_TIMES, MEASURED_CALLS = 3.0, 32
"""But not before SILENT_TIMES the median time of the last MEASURED_CALLS calls of its deployment: a batch may take seconds."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call. Times are of `time.monotonic()`, inf while they have not come.

    Args:
        argument: the call whose result it takes; the replica cannot begin before.
        result: None for a stream.
        sent_at: inf if the call may take long: then its time says nothing.
    """

    replica_id: ReplicaID
    node_id: str
    argument: _Call | None
    result: ObjectRef[Any] | None
    sent_at: float
    completed_at: float = math.inf

    @property
    def could_begin_at(self) -> float:
        return max(self.sent_at, self.argument.completed_at) if self.argument else self.sent_at


class PendingCalls:
    """Counts calls from when they are sent until they have a result or have failed. Not thread-safe."""

    def __init__(self) -> None:
        self._by_id: dict[str, _Call] = {}
        self._by_result: dict[ObjectRef[Any], _Call] = {}
        self._by_replica: defaultdict[ReplicaID, list[_Call]] = defaultdict(list)
        self._heard_at: dict[ReplicaID | str, float] = {}
        """When a replica with calls, and a node, by its id, completed its last call."""
        self._took_s: defaultdict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=MEASURED_CALLS))

    def sent(
        self,
        call_id: str,
        replica_id: ReplicaID,
        node_id: str,
        arguments: Sequence[Any],
        result: ObjectRef[Any] | None,
        *,
        may_take_long: bool = False,
    ) -> None:
        """A replica was sent a call.

        Args:
            call_id: Ray Serve's internal request id; unique.
            arguments: of the call; an ObjectRef among them may be the result of another call.
            result: of the call.
            may_take_long: it does not make the replica silent, however long it takes.
        """
        refs = [argument for argument in arguments if isinstance(argument, ObjectRef)]
        argument = next((self._by_result[ref] for ref in refs if ref in self._by_result), None)
        sent_at = math.inf if may_take_long else time.monotonic()
        call = self._by_id[call_id] = _Call(replica_id, node_id, argument, result, sent_at)
        self._by_replica[replica_id].append(call)
        if result is not None:
            self._by_result[result] = call

    def completed(self, call_id: str) -> None:
        """A call has a result, has failed, or could not be sent."""
        call = self._by_id.pop(call_id, None)
        if call is None:
            return
        if call.result is not None:
            del self._by_result[call.result]
        call.completed_at = self._heard_at[call.replica_id] = self._heard_at[call.node_id] = time.monotonic()
        if call.could_begin_at < math.inf:
            self._took_s[call.replica_id.deployment_id].append(call.completed_at - call.could_begin_at)
        others = self._by_replica[call.replica_id]
        others.remove(call)
        if not others:
            del self._by_replica[call.replica_id], self._heard_at[call.replica_id]

    def count(self, replica_id: ReplicaID) -> int:
        """Calls that the replica has not completed."""
        return len(self._by_replica.get(replica_id, ()))

    def silent(self) -> tuple[set[ReplicaID], set[str]]:
        """Replicas that have a call which they could have begun, and have completed none for SILENT_S; nodes of such replicas of
        which no replica has completed a call for as long.
        """
        now = time.monotonic()
        replicas, nodes = set(), set()
        for replica_id, calls in self._by_replica.items():
            waits_since = max(min(call.could_begin_at for call in calls), self._heard_at.get(replica_id, -math.inf))
            if now - waits_since > SILENT_S and now - waits_since > (limit_s := self._silent_after_s(replica_id)):
                replicas.add(replica_id)
                node_id = calls[0].node_id
                if now - self._heard_at.get(node_id, -math.inf) > limit_s:
                    nodes.add(node_id)
        return replicas, nodes

    def _silent_after_s(self, replica_id: ReplicaID) -> float:
        took_s = self._took_s[replica_id.deployment_id]
        return max(SILENT_S, SILENT_TIMES * statistics.median(took_s)) if took_s else SILENT_S


PENDING_CALLS = PendingCalls()
"""Of this process. All routers of Ray Serve in a process run in one event loop."""
