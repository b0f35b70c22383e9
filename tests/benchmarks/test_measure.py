"""What all benchmarks share: turns, spreads, ratios, passes per second, tables."""

import json
import threading
from collections import namedtuple
from types import SimpleNamespace

import pytest

from benchmarks import measure
from benchmarks.measure import (
    ForeignLoad,
    Spread,
    as_number,
    as_range,
    finish,
    passes_per_s,
    ratios,
    spread,
    spread_if_any,
    table,
    turns,
)


def test_rounds_take_turns():
    """Each contestant runs once per round; each round begins with another one."""
    assert list(turns(["a", "b"], 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_ratios_are_taken_within_rounds():
    """A machine that slows down changes no ratio; of nothing there is none."""
    assert ratios([4, 8, 36], [1, 2, 9]) == Spread(4, 4, 4)
    assert spread([3, 1, 2]) == (2, 1, 3)
    assert spread_if_any([]) is None


def test_callers_run_at_once_and_a_failure_shows():
    """Two callers that wait for each other get through; one that fails does not leave the other waiting."""
    both = threading.Barrier(2, timeout=10)
    assert passes_per_s(both.wait, 0, callers=2) > 0
    failures = iter([RuntimeError("no memory left")])

    def fail_once() -> None:
        for failure in failures:
            raise failure

    with pytest.raises(RuntimeError, match="no memory left"):
        passes_per_s(fail_once, 0, callers=2)


def test_tables():
    """Three digits, a range if there is one, a dash where there is nothing."""
    assert [as_number(value) for value in (1234.5, 12.34, 1.234, None)] == ["1,234", "12.3", "1.23", "-"]
    assert as_range(Spread(2, 1, 3)) == "2.00 (1.00 to 3.00)"
    assert as_range(Spread(2, 2, 2)) == "2.00"
    assert table(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_the_last_line_is_json(capsys, tmp_path):
    """With the machine, on stdout and in the file."""
    finish("name", {"rate": Spread(2, 1, 3)}, tmp_path / "made" / "results.json")
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "made" / "results.json").read_text())
    assert (facts["benchmark"], facts["rate"]) == ("name", [2, 1, 3])
    assert facts["machine"]["cores"] >= 1


def test_foreign_load(monkeypatch):
    """Of 6 busy CPU seconds of the machine in 2 s, this program used 1: the others used 2.5 cores. Guests count once."""
    fields = namedtuple("fields", "user nice system idle iowait guest")
    machine = iter([fields(4, 0, 1, 90, 1, 3), fields(10, 0, 1, 95, 1, 5)])
    own = iter([SimpleNamespace(user=1.0, system=0.0), SimpleNamespace(user=1.5, system=0.5)])
    this = SimpleNamespace(children=lambda **_: [], cpu_times=lambda: next(own))
    monkeypatch.setattr(measure, "psutil", SimpleNamespace(cpu_times=lambda: next(machine), Process=lambda: this, Error=OSError))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=iter([10.0, 12.0]).__next__))
    assert ForeignLoad().cores() == 2.5
