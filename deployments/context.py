"""What travels with every image from stage to stage beside its data."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request's identity and deadline.

    Args:
        request_id: written on every log line about this request.
        deadline: time.time() seconds after which the answer is of no use. Nodes of a cluster must agree on the
            time to well within the timeout (NTP does).
    """

    request_id: str
    deadline: float

    @property
    def remaining_s(self) -> float:
        """Seconds left, negative when the deadline has passed."""
        return self.deadline - time.time()

    def check(self, stage: str) -> None:
        """Raise DeadlineExceeded when no time is left for `stage`."""
        if self.remaining_s <= 0:
            raise DeadlineExceeded(f"The request's deadline passed before the {stage} stage began.")
