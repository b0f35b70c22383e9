"""The report of a run: what it says, what it draws, and that nothing from elsewhere gets into the page unescaped."""

import json
from dataclasses import asdict

import pytest

from loadtest.load.openloop import Query, summarise
from loadtest.measurements.report import as_html, as_table, headline, write_report
from loadtest.service.scrape import Histogram, Snapshot
from loadtest.service.watch import Sample, watched

SUMMARY = summarise([Query(i / 10, i / 10, i / 10 + 0.05, "ok", {"decode": 3.0, "detect": 20.0}) for i in range(100)], 250, 10.0)
DURING = Snapshot(
    sizes=Histogram(((1.0, 4), (8.0, 12), (float("inf"), 0))),
    waits=Histogram(((5.0, 60), (10.0, 40))),
    latencies={"detector": Histogram(((20.0, 50), (50.0, 50)))},
    images={"detector": 100},
)
SAMPLES = [
    Sample(float(at), {"Detector": 1 + at // 3}, {"Detector": 0.9, "raylet": 0.01}, {"Detector": 400.0}) for at in range(6)
]


def results(with_watch=True):
    trial = asdict(SUMMARY)
    result = {"scenario": "server", "bound_p99_ms": 250.0, "rate_per_s": 10.0, "images_per_s": 10.0, "trials": [trial, trial]}
    facts = {"machine": {"cpu": "<script>"}, "service": {"model": "m"}, "images": {}, "seed": 0, "seconds_per_trial": 10}
    return facts | {"result": result, "watched": watched(SAMPLES, DURING) if with_watch else None}


@pytest.mark.parametrize("with_watch", [True, False])
def test_writes_a_page_a_picture_and_the_numbers(tmp_path, with_watch):
    """Also for a service that could not be watched; the file can be drawn again."""
    write_report(json.loads(json.dumps(results(with_watch))), tmp_path)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert ("metrics over the whole run" in page) == with_watch
    assert json.loads((tmp_path / "results.json").read_text())["result"]["rate_per_s"] == 10.0


def test_the_page_loads_nothing_and_escapes_everything():
    page = as_html(results(), b"")
    assert "<script>" not in page
    assert "http://" not in page
    assert "6.2 on average" in page  # 100 images in 16 passes


def test_the_headline_says_rate_and_bound():
    assert headline(results()) == "server: 10.0 requests/s (10.0 images/s) with p99 under 250 ms"
    assert as_table(results()).count("ok 100") == 2


def test_the_headline_says_what_was_not_confirmed():
    """A search that ran out of time has a lower limit, or nothing."""
    cut = results()
    cut["result"]["finished"] = False
    doubt = "not confirmed: the search ran out of time"
    assert headline(cut) == f"server: at least 10.0 requests/s (10.0 images/s) with p99 under 250 ms, {doubt}"
    cut["result"]["rate_per_s"] = None
    assert headline(cut) == f"server: no rate held p99 under 250 ms, {doubt}"
