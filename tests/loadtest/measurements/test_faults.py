"""Random faults: how queries are counted, and that a stopped process goes on; the real thing is `python -m loadtest.chaos --minutes`."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from loadtest.load.openloop import Query
from loadtest.measurements import faults
from loadtest.measurements.faults import HUNG_S, KILL, STOP, Fault, FaultInjector, as_table, summarise


def query(sent_s, done_s, outcome="ok"):
    return Query(sent_s, sent_s, done_s, outcome)


def test_queries_are_counted_with_the_last_fault():
    """Failures by outcome, the slowest answer, and what hung; a failure is explained by what held it and was lost."""
    struck = [Fault(10, KILL, "Ingress"), Fault(40, STOP, "Detector")]
    queries = [query(1, 2), query(9, 11, "status 500"), query(39, 47), query(60, 60 + HUNG_S + 1, "timeout")]
    outcome = summarise(queries, struck, 2.0)
    assert (outcome.queries, outcome.failed, outcome.unexplained, outcome.hung) == (4, 2, 1, 1)
    assert [(row["fault"], row["queries"], row["failed"]) for row in outcome.rows] == [
        ("none yet", 1, {}),
        ("kill -9 Ingress", 1, {"status 500": 1}),
        ("SIGSTOP Detector", 2, {"timeout": 1}),
    ]
    assert outcome.rows[2]["slowest_s"] == pytest.approx(HUNG_S + 1)
    assert "1 hung beyond 36 s" in as_table(outcome)


def test_a_fault_during_which_nothing_ended():
    """It has no slowest answer, which is not one of 0 s."""
    outcome = summarise([query(1, 2)], [Fault(10, KILL, "Ingress")], 2.0)
    assert outcome.rows[1]["slowest_s"] is None
    assert as_table(outcome).splitlines()[2].split() == ["kill", "-9", "Ingress", "1", "0", "-", "none"]


def test_a_query_that_ended_with_the_fault_is_explained():
    """The clocks of queries and faults differ by a few milliseconds; a query that ended well before is not explained."""
    struck = [Fault(10, KILL, "Ingress")]
    outcome = summarise([query(9.9, 9.998, "disconnected"), query(9.7, 9.8, "status 500")], struck, 2.0)
    assert (outcome.failed, outcome.unexplained) == (2, 1)


@pytest.mark.parametrize("action", [STOP, KILL])
def test_a_process_is_stopped_for_a_while_or_killed(monkeypatch, action):
    """A real process whose title is a stage's."""
    monkeypatch.setattr(faults, "STOPPED_S", 0.3)
    monkeypatch.setattr(faults, "TARGETS", ("Detector",))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ServeReplica:app:Detector"]) as process:
        victim = psutil.Process(process.pid)
        service = SimpleNamespace(processes=lambda: [victim], nodes=[None])
        injector = FaultInjector(service, every_s=0.1, seed=0)
        monkeypatch.setattr(faults.random.Random, "choice", lambda _, options: action if action in options else options[0])
        thread = threading.Thread(target=injector.run, args=(time.monotonic,))
        thread.start()
        expected = {psutil.STATUS_STOPPED} if action == STOP else {psutil.STATUS_ZOMBIE}
        wait_until(lambda: victim.status() in expected)
        injector.ended.set()
        thread.join()
        if action == STOP:
            wait_until(lambda: victim.status() != psutil.STATUS_STOPPED)
        process.kill()
    assert {fault.name for fault in injector.faults} == {f"{action} Detector"}


def wait_until(met):
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
