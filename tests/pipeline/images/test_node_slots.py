"""Slots of a machine: as many holders as slots, also of other processes; a holder that ends or is stopped blocks nobody for ever."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.images.node_slots import NodeSlots

HOLD = """
import sys, time
from pathlib import Path
from pipeline.images.node_slots import NodeSlots
with NodeSlots("test", Path(sys.argv[1]), 1).held(5):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the only slot."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def took_s(slots, patience_s):
    began = time.monotonic()
    with slots.held(patience_s):
        return time.monotonic() - began


def test_as_many_holders_as_slots(tmp_path):
    """Two enter at once; the third waits for its time and enters then."""
    one, two, three = (NodeSlots("test", tmp_path, 2) for _ in range(3))
    with one.held(5), two.held(5):
        assert took_s(three, 0.2) >= 0.2
    assert took_s(three, 5) < 1


def test_a_killed_holder_frees_its_slot(holder, tmp_path):
    """The kernel unlocks the file."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert took_s(NodeSlots("test", tmp_path, 1), 5) < 1


def test_a_stopped_holder_is_waited_for_once(holder, tmp_path):
    """Its slot stays locked; others go on without it."""
    os.kill(holder.pid, signal.SIGSTOP)
    assert 0.2 <= took_s(NodeSlots("test", tmp_path, 1), 0.2) < 1


def test_a_folder_that_cannot_be_written(tmp_path):
    """Decoding goes on without a slot, at once."""
    (tmp_path / "file").touch()
    assert took_s(NodeSlots("test", tmp_path / "file", 1), 10) < 1


def test_slots_by_cores(monkeypatch):
    """One for four cores, at least one."""
    for cores, slots in ((1, 1), (2, 1), (7, 1), (16, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert len(NodeSlots("test")._paths) == slots


def test_a_slot_stays_held_while_it_rests(tmp_path):
    """For three times as long as the block took; also for its own process."""
    slots, took_s = NodeSlots("test", tmp_path, 1), []

    def pause_s(seconds):
        took_s.append(seconds)
        return 3 * seconds

    with slots.held(0.0, pause_s):
        time.sleep(0.1)
    began = time.monotonic()
    assert slots._first_free(began) is None
    with slots.held(5.0):
        assert time.monotonic() - began > 2.9 * took_s[0] - 0.05
