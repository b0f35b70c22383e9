"""Twice the limit against a server whose limit is known."""

import pytest

from loadtest.load.scenarios import Setup
from loadtest.measurements import overload as module
from loadtest.measurements.overload import as_table, overload
from tests.support.fake_service import BODIES, fake_service, service_at

SETUP = Setup(p99_ms=200, seconds=2)


@pytest.mark.parametrize(("room", "keeps"), [(4, True), (10_000, False)])
async def test_refusing_keeps_the_goodput(room, keeps, monkeypatch):
    """100/s at most: a server that refuses what it cannot do in time keeps its goodput at twice the limit, a patient one loses it."""
    for pause in ("WARM_UP_S", "BETWEEN_S", "AFTER_S"):
        monkeypatch.setattr(module, pause, 0.2)
    async with fake_service(step_s=0.01, max_waiting=room) as url:
        result = await overload(service_at(url), BODIES, SETUP, 60.0)
    assert result.limit_per_s == 60
    assert result.at_twice.queries == 240
    assert (result.goodput_kept >= 0.9) is keeps
    assert (result.at_twice.refused_p99_ms is not None) is keeps
    assert result.recovered_s is not None
    assert "goodput kept" in as_table(result)
    assert min(result.memory_mb) > 10


async def test_a_service_that_answers_nothing(monkeypatch):
    """No goodput at the limit: none can be kept, and failures are neither refusals nor late."""
    monkeypatch.setattr(module, "GIVE_UP_S", 0.1)
    for pause in ("WARM_UP_S", "BETWEEN_S", "AFTER_S"):
        monkeypatch.setattr(module, pause, 0.0)
    async with fake_service(answer=b"[]") as url:
        result = await overload(service_at(url), BODIES, Setup(p99_ms=200, seconds=0.1), 60.0)
    assert result.goodput_kept is None
    assert "goodput kept: -" in (table := as_table(result))
    assert table.splitlines()[1].split() == ["60.0", "0.0", "0", "0", "6", "-", "-"]
