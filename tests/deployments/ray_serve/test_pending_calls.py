"""Calls that have no result yet: which replicas and nodes are silent."""

import pytest
from ray import ObjectRef
from ray.serve._private.common import DeploymentID, ReplicaID

from deployments.ray_serve import pending_calls
from deployments.ray_serve.pending_calls import PendingCalls

LOADER, DETECTOR, DETECTOR_2 = (
    ReplicaID(name, DeploymentID(name=stage)) for name, stage in [("l", "ImageLoader"), ("d", "Detector"), ("d2", "Detector")]
)


class Calls(PendingCalls):
    """With a clock, and an ObjectRef as the result of each call."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now = 0.0
        self._results = {}
        monkeypatch.setattr(pending_calls.time, "monotonic", lambda: self.now)

    def send(self, name, replica, node="node", argument=None, *, may_take_long=False):
        """Send a call that takes the result of the call `argument`, if given."""
        result = self._results[name] = ObjectRef(bytes([len(self._results) + 1] * 28))
        arguments = [["tasks"], self._results[argument]] if argument else [["tasks"]]
        self.sent(name, replica, node, arguments, result, may_take_long=may_take_long)

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
    calls.completed("first")
    assert calls.silent_at(1.2) == (set(), set())
    assert calls.silent_at(1.4) == ({"d"}, {"node"})
    calls.completed("second")
    assert calls.silent_at(60.0) == (set(), set())


def test_a_replica_without_calls_is_not_silent_later(calls):
    calls.send("first", DETECTOR)
    calls.completed("first")
    calls.now = 60.0
    calls.send("second", DETECTOR)
    assert calls.silent_at(60.9) == (set(), set())


def test_a_replica_that_waits_for_the_argument_of_its_call_is_not_silent(calls):
    """The ImageLoader is lost, so the Detector could not begin."""
    calls.send("load", LOADER, "lost")
    calls.send("detect", DETECTOR, "left", argument="load")
    assert calls.silent_at(5.0) == ({"l"}, {"lost"})
    calls.completed("load")
    assert calls.silent_at(5.9) == (set(), set())
    assert calls.silent_at(6.1) == ({"d"}, {"left"})
    calls.completed("detect")
    assert calls.silent_at(7.0) == (set(), set())


def test_the_other_calls_of_a_replica_that_waits_for_an_argument_count(calls):
    calls.send("load", LOADER)
    calls.send("detect", DETECTOR, argument="load")
    calls.send("info", DETECTOR)
    assert calls.silent_at(1.5)[0] == {"l", "d"}


def test_a_node_is_not_silent_if_another_replica_of_it_completes_calls(calls):
    calls.send("detect", DETECTOR, "node")
    calls.send("load", LOADER, "node")
    calls.now = 1.5
    calls.completed("load")
    assert calls.silent_at(2.0) == ({"d"}, set())
    assert calls.silent_at(2.6) == ({"d"}, {"node"})


def test_a_deployment_whose_calls_take_seconds_is_silent_later(calls):
    """After three times the median of its last calls; the calls of other deployments do not count."""
    for number in range(5):
        calls.send(f"detect {number}", DETECTOR)
        calls.now += 2.0
        calls.completed(f"detect {number}")
    calls.send("detect", DETECTOR_2)
    calls.send("load", LOADER, "another")
    assert calls.silent_at(15.9) == ({"l"}, {"another"})
    assert calls.silent_at(16.1)[0] == {"l", "d2"}


def test_a_call_that_may_take_long_makes_nothing_silent(calls):
    """Neither while it lasts nor as a measure of how long calls take; the stage after it is silent when it does not answer."""
    calls.send("a slow URL", LOADER, may_take_long=True)
    assert calls.silent_at(9.0) == (set(), set())
    calls.completed("a slow URL")
    calls.send("load", LOADER)
    assert calls.silent_at(10.1)[0] == {"l"}
    calls.completed("load")
    calls.send("a large image", LOADER, may_take_long=True)
    calls.send("detect", DETECTOR, argument="a large image")
    assert calls.silent_at(20.0) == (set(), set())
    calls.completed("a large image")
    assert calls.silent_at(21.1)[0] == {"d"}


def test_a_call_cancelled_while_it_waits_says_nothing_about_how_long_calls_take(calls):
    calls.send("load", LOADER)
    calls.send("detect", DETECTOR, argument="load")
    calls.now = 60.0
    calls.completed("detect")
    calls.send("detect again", DETECTOR)
    assert calls.silent_at(61.1)[0] == {"l", "d"}


def test_nothing_is_kept_of_calls_that_are_completed(calls):
    calls.send("load", LOADER)
    calls.send("detect", DETECTOR, argument="load")
    assert calls.count(DETECTOR) == 1
    calls.completed("load")
    calls.completed("detect")
    assert calls.count(DETECTOR) == 0
    assert not calls._by_id
    assert not calls._by_result
    assert not calls._by_replica
    assert list(calls._heard_at) == ["node"]


def test_a_call_that_was_never_sent_may_be_completed(calls):
    calls.completed("never sent")
    assert calls.silent() == (set(), set())
