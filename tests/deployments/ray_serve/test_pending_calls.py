"""Calls that have no result yet: which replicas and nodes are silent."""

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID

from deployments.ray_serve import pending_calls
from deployments.ray_serve.pending_calls import PendingCalls

LOADER, DETECTOR, DETECTOR_2 = (
    ReplicaID(name, DeploymentID(name=stage)) for name, stage in [("l", "ImageLoader"), ("d", "Detector"), ("d2", "Detector")]
)


class Calls(PendingCalls):
    """With a clock; a call is named."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now = 0.0
        self._replicas = {}
        monkeypatch.setattr(pending_calls.time, "monotonic", lambda: self.now)

    def send(self, name, replica, node="node", *, is_timed=True):
        self._replicas[name] = replica
        self.sent(name, replica, node, None, is_timed=is_timed)

    def complete(self, name):
        self.completed(self._replicas[name], name)

    def one_after_the_other(self, count, replica, took_s, *, is_timed=True):
        for number in range(count):
            self.send(f"{number} of {count}", replica, is_timed=is_timed)
            self.now += took_s
            self.complete(f"{number} of {count}")

    def silent_at(self, now):
        self.now = now
        replicas, nodes = self.silent()
        return {one.unique_id for one in replicas}, nodes


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def test_a_replica_is_silent_if_it_completes_no_call_for_a_second(calls):
    calls.send("first", DETECTOR)
    calls.send("second", DETECTOR)
    assert calls.silent_at(0.3) == (set(), set())
    calls.complete("first")
    assert calls.silent_at(1.2) == (set(), set())
    assert calls.silent_at(1.4) == ({"d"}, {"node"})
    calls.complete("second")
    assert calls.silent_at(60.0) == (set(), set())


def test_a_replica_without_calls_is_not_silent_later(calls):
    calls.send("first", DETECTOR)
    calls.complete("first")
    calls.now = 60.0
    calls.send("second", DETECTOR)
    assert calls.silent_at(60.9) == (set(), set())


def test_a_node_is_not_silent_if_another_replica_of_it_completes_calls(calls):
    calls.send("detect", DETECTOR, "node")
    calls.send("load", LOADER, "node")
    calls.now = 1.5
    calls.complete("load")
    assert calls.silent_at(2.0) == ({"d"}, set())
    assert calls.silent_at(2.6) == ({"d"}, {"node"})


def test_a_deployment_whose_calls_take_seconds_is_silent_later(calls):
    """After three times the median of its last calls; the calls of other deployments do not count."""
    calls.one_after_the_other(5, DETECTOR, 2.0)
    calls.send("detect", DETECTOR_2)
    calls.send("load", LOADER, "another")
    assert calls.silent_at(15.9) == ({"l"}, {"another"})
    assert calls.silent_at(16.1)[0] == {"l", "d2"}


def test_calls_that_fail_together_hardly_raise_the_limit(calls):
    """Those of a lost replica, which Ray ends after 6 s."""
    calls.one_after_the_other(32, DETECTOR, 0.05)
    for number in range(20):
        calls.send(f"lost {number}", DETECTOR)
    calls.now += 6.0
    for number in range(20):
        calls.complete(f"lost {number}")
    calls.send("detect", DETECTOR_2)
    assert calls.silent_at(calls.now + 3.1)[0] == {"d2"}


def test_a_call_that_is_not_timed_makes_nothing_silent(calls):
    """Neither while it lasts nor as a measure of how long calls take; other calls of the replica do."""
    calls.send("a slow URL", LOADER, is_timed=False)
    assert calls.silent_at(9.0) == (set(), set())
    calls.complete("a slow URL")
    calls.send("a large image", LOADER, is_timed=False)
    calls.send("load", LOADER)
    assert calls.silent_at(10.1)[0] == {"l"}
    calls.complete("load")
    assert calls.silent_at(60.0) == (set(), set())


def test_calls_that_are_not_timed_do_not_lower_the_limit(calls):
    calls.one_after_the_other(8, LOADER, 2.0)
    calls.one_after_the_other(8, LOADER, 0.0, is_timed=False)
    calls.send("load", LOADER)
    assert calls.silent_at(calls.now + 5.9) == (set(), set())


def test_two_calls_may_have_the_same_id(calls):
    """Calls of one request may: Ray Serve takes the id from its context."""
    calls.send("info", DETECTOR)
    calls.send("info", DETECTOR)
    calls.complete("info")
    assert calls.count(DETECTOR) == 1
    calls.complete("info")
    assert calls.count(DETECTOR) == 0
    assert calls.silent_at(60.0) == (set(), set())


def test_nothing_is_kept_of_calls_that_are_completed(calls):
    calls.send("load", LOADER)
    assert calls.count(LOADER) == 1
    calls.complete("load")
    assert calls.count(LOADER) == 0
    assert not calls._calls
    assert list(calls._last_completed_at) == ["node"]


def test_a_call_that_was_never_sent_may_be_completed(calls):
    calls.completed(DETECTOR, "never sent")
    assert calls.silent() == (set(), set())
    assert not calls._calls
