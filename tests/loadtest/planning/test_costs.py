"""What an image costs: CPU time by process, and the engine that is measured."""

from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from loadtest.load.photos import photos_from
from loadtest.planning import costs
from loadtest.planning.costs import as_table, measure_costs, spent
from loadtest.service.local_service import SHIPPED_CONFIG
from tests.support.costs import COSTS
from tests.support.stub_service import stub_service


def test_spent():
    """Between two looks, by part; a process that came in between counts whole, one that went not at all."""
    before = {1: ("Ingress", 5.0), 2: ("decoders", 1.0), 3: ("decoders", 9.0)}
    after = {1: ("Ingress", 6.0), 2: ("decoders", 1.5), 4: ("decoders", 0.25)}
    assert spent(before, after) == {"Ingress": 1.0, "decoders": 0.75}
    assert "outside it: 16.0 ms net" in as_table(COSTS)


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr(costs, "IDLE_S", 0.1)
    monkeypatch.setattr(costs, "ENGINE_S", 0.1)


@contextmanager
def fake_local_service(*_):
    """A service without processes."""
    with stub_service() as stub:
        yield SimpleNamespace(url=stub.url, processes=list)


def test_costs_are_of_the_engine_that_is_served(tmp_path, monkeypatch):
    """Its model and options come from the configuration; a GPU's engine is no CPU work."""
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    document["applications"][0]["args"]["detector"] |= {"engine": "simulated", "max_batch": 4, "simulated": {"base_ms": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(costs, "local_service", fake_local_service)
    measured = measure_costs(photos_from(None, count=2), 2, 1, 8, tmp_path / "config.yaml")
    assert [batch for batch, _ in measured.engine_ms] == [1, 4]
    assert (measured.on_cpu, measured.engine_cpu_ms, measured.images) == (False, 0.0, 8)


def test_urls_that_the_service_may_fetch(tmp_path, monkeypatch):
    """--urls asks for photos of an image server that is there while the service runs, and that its configuration allows."""
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    document["applications"][0]["args"]["detector"] |= {"engine": "simulated", "simulated": {"base_ms": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    photos, fetched = photos_from(None, count=2), set()

    @contextmanager
    def service_that_fetches(_config, change):
        change(document)
        with stub_service(is_bad=lambda url: fetched.add(requests.get(url, timeout=5).content)) as stub:
            yield SimpleNamespace(url=stub.url, processes=list)
            allowed = document["applications"][0]["args"]["image_loader"]["fetch"]
            assert {urlsplit(url).port for _, (url,), _ in stub.asked} == set(allowed["allowed_ports"])

    monkeypatch.setattr(costs, "local_service", service_that_fetches)
    assert measure_costs(photos, 2, 1, 4, tmp_path / "config.yaml", urls=True).urls
    assert fetched == set(photos)
