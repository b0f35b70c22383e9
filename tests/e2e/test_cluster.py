"""Two nodes, and one is lost while requests run: every process of it gets SIGKILL, or SIGSTOP, as where the power or the network fails."""

import time

import pytest

from deployments.settings import DEPLOYMENTS
from loadtest.chaos import CALLERS, Callers, lose_node, two_detectors
from loadtest.local_service import local_service, title_of


def deployments_on(node):
    return sorted(name for name in DEPLOYMENTS for process in node.processes() if f":{name}" in title_of(process))


def wait_for_replicas(node, deployments):
    deadline = time.monotonic() + 30
    while deployments_on(node) != deployments:
        assert time.monotonic() < deadline, deployments_on(node)
        time.sleep(0.5)


DEADLINE_S = 36.0
"""Seconds: a little over HAProxy's timeout in ray.env, which ends what a silent Ingress holds."""
GIVEN_UP_S = 7.0
"""A node that says nothing (ray.env); on a busy machine a few seconds more."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_silent_node():
    """The node stops answering: Ray and HAProxy detect it, and no request waits beyond its deadline."""
    with local_service(change=two_detectors, nodes=2) as service:
        silent, left = service.nodes
        for node in service.nodes:
            wait_for_replicas(node, sorted(DEPLOYMENTS))
        with Callers(service.url, CALLERS) as callers:
            time.sleep(2)
            stopped_at = time.monotonic()
            for process in silent.processes():
                process.suspend()
            wait_for_replicas(left, sorted(2 * DEPLOYMENTS))  # fails after 30 s: starting a Detector takes most of it
            up_again_s = time.monotonic() - stopped_at
            time.sleep(max(0.0, 2 * GIVEN_UP_S - up_again_s))
            for process in silent.processes():
                process.kill()
        after = [(done - sent, status) for sent, done, status in callers.answers if done > stopped_at]
        failed = sum(status != 200 for _, status in after)
        print(f"\nreplaced after {up_again_s:.1f} s; slowest answer {max(after)[0]:.1f} s; failed {failed}")
        assert max(seconds for seconds, _ in after) < DEADLINE_S
        assert failed <= CALLERS  # what the silent Ingress held
        assert {status for _, _, status in callers.answers[-3:]} == {200}


@pytest.mark.timeout(240)
def test_a_lost_node():
    """Requests that its Ingress held are lost with it; everything else is answered, in seconds, and all stages run on the other node."""
    with local_service(change=two_detectors, nodes=2) as service:
        _, left = service.nodes
        for node in service.nodes:
            wait_for_replicas(node, sorted(DEPLOYMENTS))  # one replica of each is enough for /ready
        with Callers(service.url, CALLERS) as callers:
            time.sleep(2)
            loss = lose_node(service, callers)
        print(f"\n{loss}")
        assert loss.ready_s < 20
        assert loss.slowest_s < 20
        assert loss.failed <= 2 * CALLERS
        assert {status for sent, _, status in callers.answers[-3:]} == {200}
        wait_for_replicas(left, sorted(2 * DEPLOYMENTS))
