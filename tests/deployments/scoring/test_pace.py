"""Throughput, by a clock of its own."""

import pytest

from deployments.scoring import pace
from deployments.scoring.pace import MIN_ITEMS, Pace


class Work:
    """Items that are done one after the other."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)
        self.pace = Pace()
        self.pace.begin()

    def do(self, items, seconds_per_item):
        """The pace after these items, seconds per item."""
        for _ in range(items):
            self.now += seconds_per_item
            self.pace.done(1)
        return self.pace.seconds_per_item


@pytest.fixture
def work(monkeypatch):
    return Work(monkeypatch)


@pytest.mark.parametrize("seconds_per_item", [0.002, 0.5, 1.5, 9.0])
def test_the_pace_is_known_after_some_items(work, seconds_per_item):
    """Also that of a slow model, or of one Ingress among many."""
    assert work.do(MIN_ITEMS - 1, seconds_per_item) == 0
    for items in (1, 100):
        assert work.do(items, seconds_per_item) == pytest.approx(seconds_per_item)


def test_a_new_pace_is_followed(work):
    """In a few time constants; a second changes little."""
    assert work.do(100, 1.0) == pytest.approx(1.0)
    assert work.do(2, 0.5) > 0.8
    assert work.do(58, 0.5) < 0.55


def test_idle_time_does_not_count(work):
    work.do(20, 0.1)
    work.now += 60.0
    work.pace.begin()
    assert work.do(1, 0.1) == pytest.approx(0.1)
