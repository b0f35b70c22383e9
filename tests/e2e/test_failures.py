"""A replica is killed with SIGKILL while requests run: which requests fail, for how long, and what /ready returns."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest
import requests

from loadtest.chaos import Callers
from loadtest.service.local_service import wait_until_ready
from tests.support.request_body import as_body

ANSWER_AGAIN_S = 15.0
"""A loaded CI machine is slow; what a quiet one takes is measured by `python -m loadtest.chaos` and stands in the README."""
CLIENTS, DEADLINE_S = 4, 36.0
"""Number of callers, and seconds: a little over HAProxy's timeout in ray.env."""


@pytest.mark.parametrize("deployment", ["ImageLoader", "Detector", "Polygonizer", "Ingress"])
def test_killed_replica(service, photo, deployment):
    """Requests keep coming while one replica dies: the service answers again, and /ready says so."""
    wait_until_ready(service)
    statuses, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            try:
                statuses.append(requests.post(f"{service.url}/score", json=as_body([photo]), timeout=30).status_code)
            except requests.RequestException:
                statuses.append(0)

    callers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for caller in callers:
        caller.start()
    time.sleep(0.5)
    victim = service.replica_pids(deployment)[0]
    os.kill(victim, signal.SIGKILL)
    took_s = wait_until_ready(service, ANSWER_AGAIN_S)
    time.sleep(0.5)
    stop.set()
    for caller in callers:
        caller.join()
    print(
        f"\n{deployment}: ready again after {took_s:.2f} s, answers {sorted(set(statuses))}, failed {sum(s != 200 for s in statuses)}"
    )
    assert set(statuses) == {200}  # HAProxy sends what an Ingress held to the other one; all others' images are scored again
    assert requests.post(f"{service.url}/score", json=as_body([photo]), timeout=30).status_code == 200
    wait_for_replacement(service, deployment, victim)


def test_silent_ingress_stops_nobody_else(service):
    """One of two Ingresses is stopped with SIGSTOP: the other one keeps answering, because no stage waits for the stopped one."""
    victim = wait_for_started(service, "Ingress", 2)[0]
    with Callers(service.url, CLIENTS) as callers:
        time.sleep(2)
        stopped_at = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        time.sleep(4)  # an Ingress that misses its health checks is killed after 4.5 s at the earliest
        os.kill(victim, signal.SIGKILL)
    meanwhile = [status for _, done, status in callers.answers if stopped_at + 1 < done < stopped_at + 4]
    assert len(meanwhile) > 5
    assert {status for *_, status in callers.answers} == {200}
    wait_for_replacement(service, "Ingress", victim)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["ImageLoader", "Polygonizer", "Ingress"])
def test_silent_replica(service, deployment):
    """One of two replicas is stopped with SIGSTOP: its images are answered within seconds, and it is replaced."""
    wait_until_ready(service)
    time.sleep(1)
    victim = service.replica_pids(deployment)[0]
    with Callers(service.url, CLIENTS) as callers:
        time.sleep(0.5)
        stopped_at = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        try:
            while len(set(service.replica_pids(deployment)) - {victim}) < 2:
                assert time.monotonic() < stopped_at + 60, f"{deployment} was not replaced"
                time.sleep(0.1)
            replaced_s = time.monotonic() - stopped_at
            time.sleep(2)
        finally:
            with suppress(ProcessLookupError):  # Ray kills it when it has missed three health checks
                os.kill(victim, signal.SIGKILL)
    after = [(done - sent, status) for sent, done, status in callers.answers if done > stopped_at]
    failed = [status for _, status in after if status != 200]
    print(f"\n{deployment}: replaced after {replaced_s:.1f} s; slowest answer {max(after)[0]:.1f} s; failed {failed}")
    assert max(after)[0] < DEADLINE_S
    assert len(failed) <= (CLIENTS if deployment == "Ingress" else 0)
    wait_until_ready(service)


def wait_for_started(service, deployment, count):
    """Until so many replicas have started; returns their process ids."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pids = sorted(service.started_pids().intersection(service.replica_pids(deployment)))
        if len(pids) == count:
            return pids
        time.sleep(0.2)
    return pytest.fail(f"{deployment} has {len(pids)} of {count} replicas")


def wait_for_replacement(service, deployment, victim):
    """Until a new process runs in the dead one's place."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pids = service.replica_pids(deployment)
        if victim not in pids and len(pids) >= 1:
            return
        time.sleep(0.2)
    pytest.fail(f"{deployment} was not replaced")
