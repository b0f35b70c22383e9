"""The race's bookkeeping with made-up contestants, processes that end, and (slow) the real peers' answers."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest
import requests

from benchmarks import peers_race
from benchmarks.peers.process import PYTHONS, WIRES, peer_process, session_process, wait_until_scoring
from benchmarks.peers.scoring import Scorer, answer
from benchmarks.peers.standings import Turn, _cells, as_table, errors_of, standings
from benchmarks.peers.triton_wire import TRITON
from benchmarks.peers_race import Contestant, measure_contestant, race
from benchmarks.raster import rings_to_mask
from deployments.settings import EMBEDDED_MODEL
from loadtest.load.photos import photos_from
from loadtest.load.scenarios import Setup
from loadtest.load.traffic import JSON_HEADERS, SCORE, request_bodies
from tests.support.fake_service import fake_service
from tests.support.processes import is_alive

CEILINGS = [{"1": 40.0, "8": 50.0}, {"1": 80.0, "8": 100.0}]


def contestant(name):
    return Contestant(name, None)


def test_rounds_take_turns():
    """Each contestant runs once per round, another one first each time; a found rate is the start of the next search."""
    asked = []

    def measure(who, round_, start_per_s):
        asked.append((who.name, round_, start_per_s))
        return Turn(who.name, round_, server_per_s=20.0 if who.name == "a" else 0.0)

    saved = []
    turns = race([contestant("a"), contestant("b")], 2, measure, lambda turns: saved.append(len(turns)))
    assert saved == [2, 4]  # after every round, so that an end in the last one loses only that
    assert asked == [("a", 0, None), ("b", 0, None), ("b", 1, None), ("a", 1, 20.0)]
    assert [turn.name for turn in turns] == ["a", "b", "b", "a"]


def test_ratios_within_rounds():
    """A machine that doubles its speed between rounds changes no ratio and no efficiency."""
    turns = [Turn("peer", 0, 10, 20), Turn("ours", 0, 20, 40), Turn("ours", 1, 40, 80), Turn("peer", 1, 20, 40)]
    ours, peer = standings(turns, CEILINGS)
    assert (ours["name"], peer["name"]) == ("ours", "peer")
    assert peer["ours_by_server_per_s"] == (2, 2, 2)
    assert peer["ours_by_offline_per_s"] == (2, 2, 2)
    assert ours["of_engine_alone"] == (0.8, 0.8, 0.8)
    assert ours["server_per_s"] == (30, 20, 40)


def test_no_rate_is_not_a_ratio():
    """A peer that holds no rate has no ratio, one that did not start no numbers, a search that ran out says so; the table, too."""
    unfinished = {"server": {"finished": False}}
    slow = Turn("slow", 0, 0.0, 3, {"timeout": 2}, details=unfinished)
    turns = [Turn("ours", 0, 20, 40), slow, Turn("gone", 0, fault="no such module")]
    rows = {row["name"]: row for row in standings(turns, CEILINGS)}
    assert rows["slow"]["ours_by_server_per_s"] is None
    assert rows["slow"]["errors"] == {"timeout": 2}
    assert rows["gone"]["server_per_s"] is rows["gone"]["of_engine_alone"] is None
    table = as_table(
        {
            "model": "m",
            "objects_per_image": 1.0,
            "engine_alone_images_per_s": CEILINGS[0],
            "rounds": 1,
            "bound_p99_ms": 250,
            "standings": list(rows.values()),
        }
    )
    assert "timeout 2" in table
    assert "did not start" in table
    assert table.count("1 server rate not confirmed") == 1


def test_disturbed_runs_are_named():
    """A run beside other programs' work is counted, and the table says so."""
    busy, free = ({"offline": {"foreign_cores": cores}} for cores in (0.9, 0.05))
    turns = [Turn("ours", 0, None, 40, details=busy), Turn("ours", 1, None, 80, details=free)]
    (row,) = standings(turns, CEILINGS)
    assert row["disturbed"] == 1
    assert "other programs used the machine in 1 offline run" in _cells(row)[-1]


def test_errors_of_lost_trials():
    """Failures of every trial count; what was not sent does not."""
    trials = [{"outcomes": {"ok": 5, "abandoned": 90, "refused 503": 5}}, {"outcomes": {"refused 503": 1}}]
    details = {"server": {"trials": trials}, "offline": {"summary": {"outcomes": {"ok": 1, "timeout": 1}}}}
    assert errors_of(details) == {"refused 503": 6, "timeout": 1}


@contextmanager
def served(**options):
    """The fake service in a thread of its own, for contestants."""
    ready, url, loop = threading.Event(), [], asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve():
        async with fake_service(**options) as address:
            url.append(address)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_measures_a_contestant(monkeypatch):
    """Both scenarios against a server of 5 ms, errors none."""
    monkeypatch.setattr(peers_race, "WARM_UP_S", 0.2)
    setup = Setup(p99_ms=1000, seconds=0.2, repeats=1, pause_s=0.01, offline_images=20, start_per_s=60, max_trials=1)
    who = Contestant("fake", lambda: served(step_s=0.005))
    turn = measure_contestant(who, 0, request_bodies([b"photo"], 1), ["server", "offline"], setup)
    assert (turn.server_per_s, turn.errors, turn.fault) == (60, {}, None)
    assert 20 < turn.offline_per_s < 201


def test_contestant_that_does_not_start():
    """A fault is recorded and the race goes on."""

    @contextmanager
    def broken():
        raise RuntimeError("no such model")
        yield

    turn = measure_contestant(Contestant("broken", broken), 1, [b""], ["offline"], Setup())
    assert (turn.fault, turn.server_per_s, turn.errors) == ("no such model", None, None)


GRANDCHILD = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); subprocess.run(['sleep', '60'])"


def test_all_processes_of_a_peer_are_stopped():
    """Orphaned processes are stopped and the folder is removed, also when the block raises, as on Ctrl-C."""
    family, folders = [], []

    def interrupted():
        with session_process([sys.executable, "-c", GRANDCHILD]) as (process, log):
            while not (log.read_text() and len(psutil.Process(process.pid).children()) == 2):
                time.sleep(0.01)
            family.extend([psutil.Process(process.pid), *psutil.Process(process.pid).children()])
            folders.append(log.parent)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(family) == 3
    assert not any(map(is_alive, family))
    assert not folders[0].exists()


ENDED_TWICE = f"""
import sys, time
from benchmarks.peers.process import session_process
with session_process([sys.executable, "-c", {GRANDCHILD!r}]) as (process, log):
    while not log.read_text():
        time.sleep(0.01)
    print(process.pid, log.parent, flush=True)
    time.sleep(60)
"""


def test_sigterm_stops_all_processes_of_a_peer():
    """Twice, as `timeout` sends it: the second one does not cut the cleaning up short."""
    with subprocess.Popen([sys.executable, "-c", ENDED_TWICE], stdout=subprocess.PIPE, text=True) as race:
        pid, folder = race.stdout.readline().split()
        family = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children()]
        for _ in range(2):
            race.terminate()
            time.sleep(0.1)
        assert race.wait(30) == 128 + signal.SIGTERM
    assert not any(map(is_alive, family))
    assert not Path(folder).exists()


def test_fault_has_log_tail():
    """The error of a peer that ends at once contains the end of its log."""
    command = [sys.executable, "-c", "raise SystemExit('no flask here')"]
    with session_process(command) as (process, log), pytest.raises(RuntimeError, match="no flask here"):
        wait_until_scoring("http://127.0.0.1:9", b"", process, log, 30)


def test_triton_wire():
    """Each image is a row of Triton's tensor; its rows become the contract's list; any other answer stays, to be judged."""
    (body,) = request_bodies([b"photo"], 1)
    asked = orjson.loads(TRITON.request(body))
    assert asked["inputs"][0]["data"] == orjson.loads(body)["input_data"]["data"]
    assert asked["inputs"][0]["shape"] == [1, 1]
    rows = ['{"boxes":[]}', '{"boxes":[1]}']
    answered = orjson.dumps({"model_name": "rtmdet-ins", "outputs": [{"name": "boxes", "datatype": "BYTES", "data": rows}]})
    assert orjson.loads(TRITON.answer(answered)) == [{"boxes": []}, {"boxes": [1]}]
    for wrong in (b"[]", b"not JSON", b"{}", b'{"outputs":[]}'):
        assert TRITON.answer(wrong) == wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHONS)
def test_peer_agrees(name):
    """Every peer finds what our engine finds: to the byte with our engine, nearly with mmdet in float32."""
    if subprocess.run([PYTHONS[name], "-c", f"import {MODULES[name]}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{MODULES[name]} is not installed: pip install '.[peers]', and see docs/LOADTEST.md")
    photo = photos_from(None, 1)
    (body,) = request_bodies(photo, 1)
    scorer = Scorer(EMBEDDED_MODEL, 8, len(os.sched_getaffinity(0)))
    (text,) = orjson.loads(body)["input_data"]["data"]
    expected = answer([scorer.outline(scorer.detect([scorer.load(text)])[0])])
    wire = WIRES.get(name, SCORE)
    with peer_process(name, EMBEDDED_MODEL, body) as url:
        sent = requests.post(f"{url}{wire.path}", data=wire.request(body), headers=JSON_HEADERS, timeout=60)
        found = wire.answer(sent.content)
    if name == "azure_loop":
        assert_same_objects(orjson.loads(found)[0]["boxes"], orjson.loads(expected)[0]["boxes"])
    else:
        assert found == expected


MODULES = {
    "azure_loop": "flask, gunicorn",
    "serve_monolith": "ray",
    "litserve": "litserve",
    "bentoml": "bentoml",
    "mosec": "mosec",
    "pytriton": "pytriton",
}


def assert_same_objects(found, expected):
    """Same labels, scores within 0.02, masks with an IoU above 0.9."""
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs["score"] == pytest.approx(ours["score"], abs=0.02)
        a, b = (mask_of(row["polygon"]) for row in (ours, theirs))
        assert (a & b).sum() / (a | b).sum() > 0.9


def mask_of(polygon, hw=(480, 640)):
    """Rings of fractions, filled."""
    return rings_to_mask([np.reshape(ring, (-1, 2)) * hw[::-1] for ring in polygon], hw)
