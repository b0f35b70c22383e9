"""Two nodes, and one is lost while requests run: its processes are killed or stopped, or its network is cut."""

import time
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from ray import serve
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec
from ray.cluster_utils import Cluster

from deployments.ray_serve.unary_calls import _call_when_done
from deployments.settings import DEPLOYMENTS
from loadtest.chaos import CALLERS, Callers, lose_node, two_detectors
from loadtest.service.local_service import local_service
from loadtest.service.node_network import may_make_networks
from loadtest.service.processes import title_of

REPOSITORY = Path(__file__).parents[2]


def replicas_on(service, node):
    """The deployment of each replica that has started and still runs on the node, by process id."""
    started = service.started_pids()
    titles = {process.pid: title_of(process) for process in node.processes() if process.pid in started}
    return {pid: name for pid, title in titles.items() for name in DEPLOYMENTS if f":{name}" in title}


def wait_for_replicas(service, node, deployments):
    deadline = time.monotonic() + 60
    while sorted((found := replicas_on(service, node)).values()) != sorted(deployments):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


SILENT_S = 36.0
"""Seconds: a little over HAProxy's timeout in ray.env, which ends what a stopped Ingress holds."""
CUT_OFF_S = 12.0
"""Seconds: connections to a node that says nothing are given up after 4 (ray.env), then the images are scored again; more if busy."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_without_power():
    """Nothing that is sent to the node is acknowledged: HAProxy and Ray detect it, and the other node goes on answering."""
    if not may_make_networks():
        pytest.skip("the nodes get networks of their own: run this as root under `unshare --net`, after `ip link set lo up`")
    with local_service(change=two_detectors, nodes=2, namespaces=True) as service:
        lost, left = service.nodes
        for node in service.nodes:
            wait_for_replicas(service, node, DEPLOYMENTS)
        kept = set(replicas_on(service, left))
        with Callers(service.url, 2 * CALLERS) as callers:
            time.sleep(2)
            cut_at = time.monotonic()
            lost.link.cut()
            time.sleep(2 * CUT_OFF_S)
        after = [(done - sent, status) for sent, done, status in callers.answers if done > cut_at]
        print(f"\n{len(after)} answers, slowest {max(after)[0]:.1f} s, failed {[status for _, status in after if status != 200]}")
        failed = [status for _, status in after if status != 200]
        assert failed == []
        assert max(after)[0] < CUT_OFF_S
        assert kept <= set(replicas_on(service, left))  # those that wait for the lost Ingress are not given up, too


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_node():
    """SIGSTOP of every process of a node, whose kernel still acknowledges what arrives: no request waits beyond its deadline."""
    with local_service(change=two_detectors, nodes=2) as service:
        silent, left = service.nodes
        for node in service.nodes:
            wait_for_replicas(service, node, DEPLOYMENTS)
        with Callers(service.url, CALLERS) as callers:
            time.sleep(2)
            stopped_at = time.monotonic()
            for process in silent.processes():
                process.suspend()
            wait_for_replicas(service, left, 2 * DEPLOYMENTS)
            up_again_s = time.monotonic() - stopped_at
            time.sleep(max(0.0, CUT_OFF_S - up_again_s))
            for process in silent.processes():
                process.kill()
        after = [(done - sent, status) for sent, done, status in callers.answers if done > stopped_at]
        failed = sum(status != 200 for _, status in after)
        print(f"\nreplaced after {up_again_s:.1f} s; slowest answer {max(after)[0]:.1f} s; failed {failed}")
        assert max(seconds for seconds, _ in after) < SILENT_S
        assert failed <= CALLERS  # what the silent Ingress held
        assert {status for _, _, status in callers.answers[-3:]} == {200}


@pytest.mark.timeout(240)
def test_a_lost_node():
    """Requests that its Ingress held are lost with it; everything else is answered, in seconds, and all stages run on the other node."""
    with local_service(change=two_detectors, nodes=2) as service:
        _, left = service.nodes
        for node in service.nodes:
            wait_for_replicas(service, node, DEPLOYMENTS)  # one replica of each is enough for /ready
        with Callers(service.url, CALLERS) as callers:
            time.sleep(2)
            loss = lose_node(service, callers)
        print(f"\n{loss}")
        assert loss.ready_s < 20
        assert loss.slowest_s < 20
        assert loss.failed <= 2 * CALLERS
        assert {status for sent, _, status in callers.answers[-3:]} == {200}
        wait_for_replicas(service, left, 2 * DEPLOYMENTS)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_pods_of_the_manifest_take_all_replicas(monkeypatch):
    """Ray Serve spreads replicas over all nodes, those with a GPU too: none may take what a Detector needs beside its GPU."""
    manifest = next(yaml.safe_load_all((REPOSITORY / "deploy/rayservice.yaml").read_text(encoding="utf-8")))
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    head, *pods = _generate_available_node_types_from_ray_cr_spec(manifest["spec"]["rayClusterConfig"]).values()

    class Replica:
        def __init__(self, *_):
            """The other stages."""

    def deployment(entry):
        options = {name: amount for name, amount in entry["ray_actor_options"].items() if name != "memory"}
        replicas = entry["autoscaling_config"]["min_replicas"]
        return serve.deployment(Replica, name=entry["name"], num_replicas=replicas, ray_actor_options=options)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # Ray gives a node no more GPUs than that
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head["resources"]["CPU"], "include_dashboard": False})
    try:
        for pod in pods:
            for _ in range(pod["min_workers"]):
                cluster.add_node(num_cpus=pod["resources"]["CPU"], num_gpus=pod["resources"].get("GPU", 0))
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        ingress, *stages = map(deployment, application["deployments"])
        target = serve.RunTarget(ingress.bind(*(stage.bind() for stage in stages)), route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        deadline = time.monotonic() + 120
        while (told := serve.status().applications["default"]).status != "RUNNING" and time.monotonic() < deadline:
            time.sleep(1)
        assert told.status == "RUNNING", told.deployments
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_end_of_a_call_brings_no_pixels_to_the_caller():
    """A large result is on the node of the replica only, and a small one reaches the callback."""

    class Replica:
        def pixels(self):
            return np.zeros(5_000_000, np.uint8)

        def count(self):
            return 1

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1, resources={"other": 1})
        ray.init(address=cluster.address)
        replica = ray.remote(resources={"other": 1})(Replica).remote()
        told = []
        results = [replica.pixels.remote(), replica.count.remote()]
        for result in results:
            _call_when_done(result, told.append)
        deadline = time.monotonic() + 30
        while len(told) < len(results) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # a copy would be on its way
        assert set(told) == {None, 1}
        assert len(ray.experimental.get_object_locations(results)[results[0]]["node_ids"]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
