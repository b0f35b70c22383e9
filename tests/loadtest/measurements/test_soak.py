"""Minutes of a tenth of a second against a fake server."""

from contextlib import nullcontext
from functools import partial

import pytest

from loadtest.__main__ import main
from loadtest.measurements import soak as module
from loadtest.measurements.soak import growth_of, soak
from tests.support.fake_service import BODIES, fake_service, service_at

USUAL = {"Polygonizer": 2}


async def test_every_query_is_counted():
    """Refusals stay in the count, minute by minute."""
    async with fake_service(step_s=0.02, max_waiting=1) as url:
        result = await soak(service_at(url), BODIES, rate_per_s=100, minutes=7, minute_s=0.1)
    assert sum(result.outcomes.values()) == 70
    assert result.outcomes["refused 503"] > 0
    assert len(result.memory_mb) == len(result.p99_ms) == 7
    assert result.growth == pytest.approx(0, abs=0.2)


def test_nothing_was_answered(monkeypatch, capsys):
    """The exit status is 1, and an unknown growth is no 0 %."""
    monkeypatch.setattr(module, "local_service", lambda: nullcontext(service_at("http://127.0.0.1:9")))
    monkeypatch.setattr(module, "soak", partial(soak, minute_s=0.1))
    assert main(["soak", "--minutes", "1"]) == 1
    printed = capsys.readouterr()
    assert "minute 1: p50 - ms, p99 - ms, {'connection: ClientConnectorError': 1}" in printed.err
    assert printed.out.splitlines()[0].endswith("memory after the first minute: -")


def test_growth():
    """Of medians, so that one odd minute says nothing; unknown where the run was short."""
    assert growth_of([100, 100, 100, 500, 110, 110, 110, 110, 110], [USUAL] * 9) == pytest.approx(0.1)
    assert growth_of([100, 100], [USUAL] * 2) is None


def test_another_replica_is_not_growth():
    """Minutes with another number of replicas are left out."""
    assert growth_of([100, 100, 100, 200, 200, 102, 102, 102], [USUAL] * 3 + [{"Polygonizer": 3}] * 2 + [USUAL] * 3) == (
        pytest.approx(0.02)
    )
