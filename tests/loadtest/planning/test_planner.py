"""The planner's promises, for any rate and step; and the arithmetic of costs."""

import json
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loadtest.__main__ import main
from loadtest.load.photos import photos_from
from loadtest.planning import costs
from loadtest.planning.costs import Costs, as_table, measure_costs, spent
from loadtest.planning.planner import (
    CPU_STAGES,
    BoundTooTight,
    Requirements,
    cpu_ms,
    engine_step,
    plan,
    predicted_per_s,
    usual_batch,
    wait_ms,
)
from loadtest.service.local_service import SHIPPED_CONFIG
from serve_app.config.capacity import Step
from tests.support.stub_service import stub_service

NET = {"Ingress": 4.0, "ImageLoader": 2.0, "decoders": 3.0, "Detector": 33.0, "Polygonizer": 3.0, "raylet": 1.0}
COSTS = Costs(
    cpu_ms=NET,
    net_cpu_ms=NET,
    idle_cores={"controller": 0.05, "other": 0.15},
    engine_ms=[(1, 22.0), (8, 134.0)],
    engine_cpu_ms=30.0,
    hop_bytes={"client to Ingress": 80_000},
    images_per_s=25.0,
    images=320,
)
STEPS = st.builds(Step, st.floats(1, 60), st.floats(0.1, 20))


@given(STEPS, st.floats(1, 5000), st.floats(0.3, 0.95))
def test_a_plan_keeps_its_promises(step, rate, utilisation):
    """No stage above the utilisation, the bound kept, and one replica fewer would be too few."""
    required = Requirements(rate, 1000, 32, utilisation)
    made = plan(COSTS, step, required)
    assert made.p50_ms <= made.p99_ms <= required.p99_ms
    for stage in CPU_STAGES:
        needed = rate * cpu_ms(COSTS, stage) / 1e3
        assert needed / made.replicas[stage] <= utilisation * (1 + 1e-9)
        assert made.replicas[stage] == 1 or needed / (made.replicas[stage] - 1) > utilisation
    assert made.replicas["Detector"] * step.per_s(made.batch) * utilisation >= rate * (1 - 1e-9)
    assert made.max_in_flight * 8 * made.replicas["Ingress"] >= 2 * made.batch * made.replicas["Detector"]


@given(STEPS, st.floats(1, 1000), st.floats(1, 1000))
def test_more_images_never_need_less(step, rate, more):
    """Replicas and CPUs grow with the rate."""
    small, large = (plan(COSTS, step, Requirements(images, 2000)) for images in (rate, rate + more))
    assert all(large.replicas[stage] >= small.replicas[stage] for stage in CPU_STAGES)
    assert large.cpus >= small.cpus


def test_a_bound_below_two_steps_is_refused():
    """The message says what takes too long."""
    with pytest.raises(BoundTooTight, match="two steps of the network at batch 1 take 440 ms"):
        plan(COSTS, Step(200, 20), Requirements(10, 250))


@pytest.mark.parametrize(("rate_per_s", "batch"), [(1, 1), (50, 1), (200, 4), (400, 24), (450, 32), (1000, 32)])
def test_the_usual_batch_is_what_comes_during_a_step(rate_per_s, batch):
    """A step of 12 + 2 x batch ms: at 200/s, 4 images come in its 20 ms; above 500/s more come than it can ever take."""
    assert usual_batch(Step(12.0, 2.0), rate_per_s, 32) == batch


def test_the_client_on_the_same_machine_is_counted():
    """Its CPU time is not available to the service."""
    alone, _ = predicted_per_s(COSTS, 2, Step(1.0, 0.1), 8, 8)
    loaded, limit = predicted_per_s(COSTS, 2, Step(1.0, 0.1), 8, 8, client_ms=5.0)
    assert limit == "CPUs"
    assert loaded < alone


def test_waits():
    """M/D/1 at half load waits half a service time over (1 - load): 5 ms of 10; more replicas at the same load wait less."""
    assert wait_ms(0.5, 1, 10) == pytest.approx(5, rel=0.01)
    assert wait_ms(2, 4, 10) < wait_ms(0.5, 1, 10)
    assert wait_ms(0, 1, 10) == 0


def test_the_engine_is_not_counted_as_host_work():
    """Of the Detector's 33 ms the engine has 30; decoders are the ImageLoader's."""
    assert cpu_ms(COSTS, "Detector") == pytest.approx(3)
    assert cpu_ms(COSTS, "ImageLoader") == pytest.approx(5)
    assert COSTS.outside_engine_ms == pytest.approx(16)
    assert engine_step(COSTS) == Step(6.0, 16.0)


@pytest.mark.parametrize(
    ("measured", "more", "status", "said"),
    [
        ({"on_cpu": False}, "", 2, "give the step with --step-ms"),
        ({"on_cpu": False}, "--step-ms 5,1", 0, ""),
        ({"layout": "together"}, "--step-ms 5,1", 2, "layout: together"),
        ({"engine_ms": [(1, 170.0), (8, 1140.0)]}, "", 1, "cannot be met"),
    ],
)
def test_costs_that_make_no_plan(measured, more, status, said, tmp_path, capsys):
    """One line that says what to do."""
    (tmp_path / "costs.json").write_text(json.dumps({"machine": {}, "costs": asdict(replace(COSTS, **measured))}))
    assert main(["plan", "--costs", str(tmp_path / "costs.json"), "--rate", "10", *more.split()]) == status
    assert said in capsys.readouterr().err


def test_costs_are_of_the_engine_that_is_served(tmp_path, monkeypatch):
    """Its model and options come from the configuration; a card's engine is no CPU work."""
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    document["applications"][0]["args"]["detector"] |= {"engine": "simulated", "max_batch": 4, "simulated": {"base_ms": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(costs, "IDLE_S", 0.1)
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

    monkeypatch.setattr(costs, "IDLE_S", 0.1)
    monkeypatch.setattr(costs, "local_service", service_that_fetches)
    assert measure_costs(photos, 2, 1, 4, tmp_path / "config.yaml", urls=True).urls
    assert fetched == set(photos)


@contextmanager
def fake_local_service(*_):
    """A service without processes."""
    with stub_service() as stub:
        yield SimpleNamespace(url=stub.url, processes=list)


def test_what_limits_one_machine():
    """Few detectors limit, many leave it to the CPUs: (2 - 0.2 idle) cores over 16 ms."""
    step = Step(150, 30)
    assert predicted_per_s(COSTS, 2, step, 1, 8) == (pytest.approx(20.5, rel=0.01), "detectors")
    assert predicted_per_s(COSTS, 2, step, 100, 8) == (pytest.approx(112.5), "CPUs")


def test_spent():
    """Between two looks, by part; a process that came in between counts whole, one that went not at all."""
    before = {1: ("Ingress", 5.0), 2: ("decoders", 1.0), 3: ("decoders", 9.0)}
    after = {1: ("Ingress", 6.0), 2: ("decoders", 1.5), 4: ("decoders", 0.25)}
    assert spent(before, after) == {"Ingress": 1.0, "decoders": 0.75}
    assert "outside it: 16.0 ms net" in as_table(COSTS)


def test_the_chain_of_a_file_at_measured_costs(tmp_path, capsys):
    """--config prints the bottleneck of a shipped file. No GPU is measured here, so the step is given."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"machine": {"cores": 2}, "costs": asdict(COSTS)}))
    shipped = str(SHIPPED_CONFIG.with_name("serve_config.gpu.yaml"))
    assert main(["plan", "--costs", str(path), "--config", shipped, "--step-ms", "250,1.28"]) == 0
    assert "bottleneck for images in the body: network (Detector)" in capsys.readouterr().out
