"""A KubeRay manifest: what Ray Serve accepts, and no pod can serve, is refused."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from serve_app.config_file import check_config, main

SHIPPED = Path(__file__).parents[3] / "deploy/rayservice.yaml"


def changed(tmp_path, *changes):
    text = SHIPPED.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "rayservice.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("host: 0.0.0.0", "host: 127.0.0.1")], r"http_options\.host: 127\.0\.0\.1 is reached only from within its own pod"),
        ([("port: 8000\n", "port: 9000\n")], r"http_options\.port: 9000; KubeRay asks port 8000 of the group head"),
        ([("proxy_location: EveryNode", "proxy_location: HeadOnly")], "proxy_location: HeadOnly; .* expected EveryNode"),
        ([("num_gpus: 1}", "num_gpus: 2}")], r"Detector\]: 4 replicas are never reached: .* 2 GPU, .* at most 0"),
        ([("max_replicas: 4, ", "max_replicas: 5, ")], r"Detector\]: 5 replicas .* at most 4 \(headgroup 0, gpu 4, cpu 0\)"),
        (
            [
                ("num_cpus: 0, num_gpus: 1", "num_cpus: 2, num_gpus: 1"),
                ('num-cpus: "0"                   # a D', 'num-cpus: "2"  #'),
            ],
            r"Detector\] asks for CPUs beside its GPU, which replicas of Ingress, ImageLoader, Polygonizer may take first.* group gpu",
        ),
        ([("memory: 1500000000", "memory: 99000000000")], r"ImageLoader\]: 16 replicas .* 99,000,000,000 memory"),
        ([("maxReplicas: 8 ", "maxReplicas: 1 ")], r"Ingress\]: 16 replicas are never reached: .* cpu 8\)"),
        ([("        maxReplicas: 8 ", "        # ")], "spec.rayClusterConfig: Ray's autoscaler cannot read it: .*maxReplicas"),
    ],
)
def test_what_no_pod_serves(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        check_config(changed(tmp_path, *changes))


def test_another_port_with_a_name(tmp_path):
    """KubeRay takes the container's port `serve` for its probes and its Service."""
    ports = [
        (f"      - name: {name}\n", f"      - name: {name}\n{indent}ports: [{{name: serve, containerPort: 9000}}]\n")
        for name, indent in (("ray-head", " " * 14), ("ray-worker", " " * 16))
    ]
    assert check_config(changed(tmp_path, ("port: 8000\n", "port: 9000\n"), *ports))


def test_a_replica_that_asks_for_nothing(tmp_path):
    assert check_config(changed(tmp_path, ("{num_cpus: 1}", "{num_cpus: 0}")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("            max_images_in_flight:", "            timeout_s: 50\n            max_images_in_flight:")],
            "TIMEOUT_SERVER_S (35,",
        ),
        ([("graceful_shutdown_timeout_s: 65", "graceful_shutdown_timeout_s: 60")], "must be above 60, .* DRAINING_PERIOD_S (30)"),
    ],
)
def test_the_environment_of_the_pods_counts(tmp_path, monkeypatch, capsys, changes, message):
    """That of the image, with what the manifest sets; not that of this machine."""
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", None)
    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    monkeypatch.setattr(sys, "argv", ["config_file", str(changed(tmp_path, *changes))])
    assert main() == 1
    first, _, last = message.partition(" .* ")
    said = capsys.readouterr().err
    assert first in said
    assert last in said
