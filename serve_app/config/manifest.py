"""Checks a KubeRay RayService together with its serveConfigV2: what Ray Serve accepts, but no pod can serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.autoscaler._private.kuberay.autoscaling_config import _HEAD_GROUP_NAME, _generate_available_node_types_from_ray_cr_spec
from ray.serve._private.constants import DEFAULT_HTTP_PORT

from pipeline.errors import ConfigurationError
from serve_app.config.relations import replicas
from serve_app.http.exposure import is_loopback

SERVING_PORT = "serve"
"""Name of the container port that KubeRay's probes and Service use; without one it is 8000."""


def serve_config_of(manifest: Mapping[str, Any]) -> str:
    """The text of serveConfigV2.

    Raises:
        ConfigurationError: it is no text.
    """
    text = (manifest.get("spec") or {}).get("serveConfigV2")
    if not isinstance(text, str):
        raise ConfigurationError("spec.serveConfigV2: expected the configuration as text (`serveConfigV2: |`)")
    return text


def environment_of_pods(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The variables that the head's container is given as values; those of the workers must be the same."""
    head = (_cluster(manifest).get("headGroupSpec") or {}).get("template") or {}
    containers = (head.get("spec") or {}).get("containers") or [{}]
    return {entry["name"]: str(entry["value"]) for entry in containers[0].get("env") or [] if "value" in entry}


def check_pods(manifest: Mapping[str, Any], document: Mapping[str, Any], deployments: Mapping[str, dict[str, Any]]) -> None:
    """Check that KubeRay reaches the service in every pod, and that the pods hold all replicas.

    Args:
        document: its serveConfigV2, valid in itself.
        deployments: the entries of an application by name.
    Raises:
        ConfigurationError: the first setting that no pod can serve.
    """
    _check_address(_cluster(manifest), document)
    try:
        groups = _generate_available_node_types_from_ray_cr_spec(_cluster(manifest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"spec.rayClusterConfig: Ray's autoscaler cannot read it: {error!r}") from error
    needs = {name: need for name, entry in deployments.items() if (need := _resources(entry))}
    for name, need in needs.items():
        _check_room(name, need, replicas(deployments[name])[1], groups)
        _check_gpu(name, needs, groups)


def _check_room(name: str, need: Mapping[str, float], wanted: int, groups: Mapping[str, Any]) -> None:
    room = {
        group: _room(pods, need) * (1 if group == _HEAD_GROUP_NAME else pods["max_workers"]) for group, pods in groups.items()
    }
    if (possible := sum(room.values())) < wanted:
        asks = ", ".join(f"{amount:,.15g} {resource}" for resource, amount in need.items())
        by_group = ", ".join(f"{group} {count}" for group, count in room.items())
        raise ConfigurationError(
            f"deployments[{name}]: {wanted} replicas are never reached: a replica asks for {asks}, so the pods hold at most {possible} "
            f"({by_group}). Lower the number of replicas or what they ask for, or raise the groups' resources, num-cpus or maxReplicas"
        )


def _check_gpu(name: str, needs: Mapping[str, Mapping[str, float]], groups: Mapping[str, Any]) -> None:
    """Ray Serve spreads replicas over all nodes, those with a GPU too, and moves none to make room."""
    if not (needs[name].get("GPU") and needs[name].get("CPU")):
        return
    for group, pods in groups.items():
        others = [other for other, need in needs.items() if not need.get("GPU") and _room(pods, need)]
        if others and _room(pods, needs[name]):
            raise ConfigurationError(
                f"deployments[{name}] asks for CPUs beside its GPU, which replicas of {', '.join(others)} may take first, so that it never "
                f'starts: num_cpus: 0 there, and num-cpus: "0" in rayStartParams of the group {group}'
            )


def _cluster(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return (manifest.get("spec") or {}).get("rayClusterConfig") or {}


def _check_address(cluster: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    http = document.get("http_options") or {}
    if (where := document.get("proxy_location") or "EveryNode") != "EveryNode":
        raise ConfigurationError(f"proxy_location: {where}; KubeRay's probes ask every worker pod, so expected EveryNode")
    if is_loopback(host := http.get("host") or "0.0.0.0"):
        raise ConfigurationError(f"http_options.host: {host} is reached only from within its own pod; expected 0.0.0.0")
    port = http.get("port", DEFAULT_HTTP_PORT)
    for group in (cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or ())):
        containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
        named = {each.get("name"): each.get("containerPort") for each in containers[0].get("ports") or ()}
        if (serving := named.get(SERVING_PORT, DEFAULT_HTTP_PORT)) != port:
            raise ConfigurationError(
                f"http_options.port: {port}; KubeRay asks port {serving} of the group {group.get('groupName', 'head')}: take that port"
            )


def _resources(deployment: Mapping[str, Any]) -> dict[str, float]:
    """What Ray reserves for a replica."""
    options = deployment.get("ray_actor_options") or {}
    named = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    return {resource: amount for resource, amount in (named | (options.get("resources") or {})).items() if amount}


def _room(group: Mapping[str, Any], need: Mapping[str, float]) -> int:
    """How many such replicas a pod of a group holds, if nothing else runs there."""
    return int(min(group["resources"].get(resource, 0) // amount for resource, amount in need.items()))
