"""Dashboard and alerts in monitoring/ ask a running service only for what it exports; the dashboard shows all that
deployments/telemetry/metrics.py declares."""

import inspect
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from ray.serve._private import deployment_state

from loadtest.service.scrape import discovery_file, metrics_text
from pipeline.errors import StageFailed
from tests.support.request_body import as_body

REPOSITORY = Path(__file__).parents[2]
DASHBOARD = json.loads((REPOSITORY / "monitoring/grafana-dashboard.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load((REPOSITORY / "monitoring/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
APPLICATION = "rtmdet-ins"

ONLY_WITH_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}
"""Not scraped on a machine without a GPU; their names and labels are checked against Ray's table instead."""

ONLY_AFTER_FAILURES = {"ray_serve_health_check_failures_total"}
"""Not exported before the first failure; its name and labels are checked against Ray's source instead."""

_SELECTOR = re.compile(r"\b(ray_\w+)(?:\{([^}]*)\})?")  # the exporter gives every metric this prefix
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\bby \(([^)]*)\)")
_RELABEL = re.compile(r'label_replace\(.*, "(\w+)", "[^"]*", "(\w+)", "[^"]*"\)')  # the label it makes, the one it reads
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")
_SUFFIX = re.compile(r"_(total|bucket|count)$")

_HOLDS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "=~": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "!~": lambda value, wanted: re.fullmatch(wanted, value) is None,
}


@dataclass(frozen=True)
class Query:
    """One PromQL expression of a panel or alert: what it selects, and the labels it groups by.

    Args:
        legend: text with the labels that are shown.
        faults: whether it selects failed requests, which a healthy service does not have: of `status_code` only the label is needed.
    """

    panel: str
    expression: str
    legend: str
    faults: bool = False

    @property
    def groups(self) -> set[str]:
        return {label.strip() for labels in _GROUPING.findall(self.expression) for label in labels.split(",")}

    @property
    def shown(self) -> set[str]:
        return set(_LEGEND.findall(self.legend))

    def selectors(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """Metric names with their matchers: label, operator, value."""
        expression = self.expression.replace("$application", APPLICATION)
        found = [(name, _MATCHER.findall(matchers)) for name, matchers in _SELECTOR.findall(expression)]
        if not self.faults:
            return found
        return [(name, [(label, *rest) for label, *rest in matchers if label != "status_code"]) for name, matchers in found]

    def metrics(self) -> set[str]:
        return {name for name, _ in self.selectors()}

    def unanswered(self, samples: dict[str, list[Sample]]) -> list[str]:
        """The metrics of which no sample has every label that is matched, grouped by or shown, with a value that matches."""
        made = dict(_RELABEL.findall(self.expression))
        needed = {made.get(label, label) for label in self.groups or self.shown}
        return [name for name, matchers in self.selectors() if not any(_fits(s, matchers, needed) for s in samples.get(name, []))]


def _fits(sample: Sample, matchers: list[tuple[str, str, str]], needed: set[str]) -> bool:
    has_labels = needed | {label for label, _, _ in matchers} <= sample.labels.keys()
    return has_labels and all(_HOLDS[operator](sample.labels[label], value) for label, operator, value in matchers)


PANELS = [
    Query(panel["title"], target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
QUERIES = [*PANELS, *(Query(rule["alert"], rule["expr"], rule["annotations"]["summary"], faults=True) for rule in RULES)]
NOT_SCRAPED = ONLY_WITH_GPU | ONLY_AFTER_FAILURES


def scrape(service) -> dict[str, list[Sample]]:
    """The samples of one scrape by name."""
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(metrics_text(discovery_file(service.folder / "ray"))):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def total(service, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(s.value for s in scrape(service).get(name, []) if labels.items() <= s.labels.items())


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Metrics come once a second: fail when the condition does not hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the metrics did not get there in time"
        time.sleep(0.3)


def score(service, images) -> requests.Response:
    return requests.post(f"{service.url}/score", json=as_body(images), timeout=60)


@pytest.fixture(scope="module")
def samples(service, photos):
    """What the exporter shows after good and refused requests, over several scrapes: Ray shows some gauges only now and then."""
    assert score(service, photos[:3]).status_code == 200
    assert score(service, ["bm90IGFuIGltYWdl"]).status_code == 422
    seen: dict[str, list[Sample]] = {}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(set(query.unanswered(seen)) - NOT_SCRAPED for query in QUERIES):
        time.sleep(1)
        for name, found in scrape(service).items():
            seen.setdefault(name, []).extend(found)
    return seen


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel}: {query.legend}")
def test_every_query_finds_samples(samples, query):
    """Every metric of the expression is scraped, with the labels that the expression and its legend use."""
    assert set(query.unanswered(samples)) <= NOT_SCRAPED


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel}: {query.legend}")
def test_every_query_is_sound(query):
    """It selects something, by the parser's account of it too; its legend shows only labels it keeps; no estimated sums."""
    assert query.metrics()
    assert query.expression.count("ray_") == len(query.selectors())
    aggregated = re.search(r"\b(sum|count|histogram_quantile)\b", query.expression) is not None
    assert not aggregated or query.shown <= query.groups
    assert not any(name.endswith("_sum") for name in query.metrics())


def test_quantiles_of_whole_numbers_are_whole():
    """Prometheus interpolates within a bucket: the median of batches that all have one image would be 0.5."""
    for query in PANELS:
        if query.metrics() & {"ray_rtmdet_batch_size_bucket", "ray_rtmdet_objects_per_image_bucket"}:
            assert query.expression.startswith(("ceil(", "round("))


def test_gpu_queries_ask_for_what_ray_has():
    """The metrics that need a GPU are in Ray's own table, with the labels of their legends."""
    for query in QUERIES:
        for name in query.metrics() & ONLY_WITH_GPU:
            assert query.shown <= set(METRICS_GAUGES[name.removeprefix("ray_")].view.columns)


def test_failed_health_checks_are_counted_by_ray():
    """The counter that a healthy service does not export is in Ray's source, under that name and with the labels that alerts group by."""
    source = inspect.getsource(deployment_state)
    for name in ONLY_AFTER_FAILURES:
        assert f'"{name.removeprefix("ray_")}"' in source
    assert all(query.groups <= {"application", "deployment"} for query in QUERIES if query.metrics() & ONLY_AFTER_FAILURES)


def ours(queries) -> set[str]:
    """Our metrics that these expressions ask for, as deployments/telemetry/metrics.py names them."""
    names = {name.removeprefix("ray_") for query in queries for name in query.metrics()}
    return {_SUFFIX.sub("", name) for name in names if name.startswith("rtmdet_")}


def test_dashboard_shows_every_metric_of_the_project():
    """Every declared metric is used by a panel, and every metric that a panel or an alert uses is declared."""
    declared = set(re.findall(r'"(rtmdet_\w+)"', (REPOSITORY / "deployments/telemetry/metrics.py").read_text(encoding="utf-8")))
    assert ours(PANELS) == ours(QUERIES) == declared


def test_dashboard_imports_anywhere():
    """Grafana asks for the data source, every panel uses it, tells an operator something, and lies on its own place."""
    assert DASHBOARD["id"] is None
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "application"}
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${datasource}" and panel["description"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_scrape_config_reads_the_file_that_ray_writes(service):
    """The targets file that Prometheus is told to read is the one that Ray keeps in its folder."""
    config = yaml.safe_load((REPOSITORY / "monitoring/prometheus.yml").read_text(encoding="utf-8"))
    (path,) = [file for job in config["scrape_configs"] for group in job["file_sd_configs"] for file in group["files"]]
    assert Path(path).parent == Path("/tmp/ray")  # Ray's folder unless RAY_TMPDIR or --temp-dir names another
    assert (service.folder / "ray" / Path(path).name).exists()


def test_objects_and_errors_are_counted(service, photo):
    """Objects rise by those answered, images with objects by the images asked, errors by the refused image."""
    refused = {"stage": "ingress", "code": "unsupported_image_format"}

    def counts() -> tuple[float, ...]:
        return (
            total(service, "ray_rtmdet_objects_total"),
            total(service, "ray_rtmdet_objects_per_image_count"),
            total(service, "ray_rtmdet_stage_errors_total", **refused),
        )

    def settled() -> tuple[float, ...]:
        last = None
        while last != (last := counts()):
            time.sleep(2)
        return last

    before = settled()
    answers = score(service, [photo, photo]).json()
    assert score(service, ["bm90IGFuIGltYWdl"]).status_code == 422
    objects = sum(len(answer["boxes"]) for answer in answers)
    assert objects > 0
    wait_until(lambda: counts() != before)
    assert [now - then for now, then in zip(settled(), before, strict=True)] == [objects, 2, 1]


def test_rare_events_are_there_before_they_happen(samples):
    """Splits, drops and failures start at 0 with every cause, so that the first one is a rise."""
    splits = {sample.labels["cause"] for sample in samples["ray_rtmdet_batch_splits_total"]}
    drops = {sample.labels["reason"] for sample in samples["ray_rtmdet_batch_dropped_total"]}
    failures = {s.labels["stage"] for s in samples["ray_rtmdet_stage_errors_total"] if s.labels["code"] == StageFailed.code}
    assert splits == {"out_of_memory", "error"}
    assert drops == {"deadline", "cancelled"}
    assert failures == {"ingress", "fetch", "image_loader", "detector", "polygonizer"}


def test_images_in_flight(service, hostile_url):
    """Three images that wait for a silent web server are in flight, and nothing is when they have been given up."""
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(score, service, [f"{hostile_url}/silence"] * 3)
        wait_until(lambda: total(service, "ray_rtmdet_images_in_flight") == 3)
        assert answer.result().status_code == 422
    wait_until(lambda: "ray_rtmdet_images_in_flight" in (now := scrape(service)) and not _in_flight(now))


def _in_flight(samples: dict[str, list[Sample]]) -> float:
    return sum(sample.value for sample in samples["ray_rtmdet_images_in_flight"])
