"""Two nodes, and one is lost: every process of it gets SIGKILL while requests run."""

import time

import pytest

from loadtest.chaos import CALLERS, Callers, lose_node, two_detectors
from loadtest.local_service import local_service, title_of

STAGES = ("Ingress", "ImageLoader", "Detector", "Polygonizer")


def stages_on(node):
    return sorted(stage for stage in STAGES for process in node.processes() if f":{stage}" in title_of(process))


def wait_for_stages(node, stages):
    deadline = time.monotonic() + 30
    while stages_on(node) != stages:
        assert time.monotonic() < deadline, stages_on(node)
        time.sleep(0.5)


@pytest.mark.timeout(240)
def test_a_lost_node():
    """Requests that its Ingress held are lost with it; everything else is answered, in seconds, and all stages run on the other node."""
    with local_service(change=two_detectors, nodes=2) as service:
        _, left = service.nodes
        for node in service.nodes:
            wait_for_stages(node, sorted(STAGES))  # one replica of each is enough for /ready
        with Callers(service.url, CALLERS) as callers:
            time.sleep(2)
            loss = lose_node(service, callers)
        print(f"\n{loss}")
        assert loss.ready_s < 20
        assert loss.slowest_s < 20
        assert loss.failed <= 2 * CALLERS
        assert {status for sent, _, status in callers.answers[-3:]} == {200}
        wait_for_stages(left, sorted(2 * STAGES))
