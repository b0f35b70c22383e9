"""The planner's promises, for any rate and step."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.__main__ import main
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
from tests.support.costs import COSTS

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


def test_what_limits_one_machine():
    """Few detectors limit, many leave it to the CPUs: (2 - 0.2 idle) cores over 16 ms."""
    step = Step(150, 30)
    assert predicted_per_s(COSTS, 2, step, 1, 8) == (pytest.approx(20.5, rel=0.01), "detectors")
    assert predicted_per_s(COSTS, 2, step, 100, 8) == (pytest.approx(112.5), "CPUs")


def test_the_chain_of_a_file_at_measured_costs(tmp_path, capsys):
    """--config prints the bottleneck of a shipped file. No GPU is measured here, so the step is given."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"machine": {"cores": 2}, "costs": asdict(COSTS)}))
    shipped = str(SHIPPED_CONFIG.with_name("serve_config.gpu.yaml"))
    assert main(["plan", "--costs", str(path), "--config", shipped, "--step-ms", "250,1.28"]) == 0
    assert "bottleneck for images in the body: network (Detector)" in capsys.readouterr().out
