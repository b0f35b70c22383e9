"""Checks settings of a serve_config.yaml against each other, such as limits that keep autoscaling from acting."""

import os
from typing import Any

from ray.serve.config import AutoscalingConfig

from deployments.detector import Detector, check_ongoing
from deployments.image_loader import ImageLoader
from deployments.ingress import Ingress
from deployments.polygonizer import Polygonizer
from deployments.settings import Settings
from pipeline.errors import ConfigurationError
from serve_app.config.schema import validated
from serve_app.http.body import MAX_BODIES_ARRIVING

CLASSES: dict[str, Any] = {"Ingress": Ingress, "ImageLoader": ImageLoader, "Detector": Detector, "Polygonizer": Polygonizer}
PLACEMENT = ("ray_actor_options", "max_replicas_per_node", "placement_group_bundles", "placement_group_strategy")
"""Options that Ray Serve checks only when it starts the deployment."""
LEAST_MEMORY = 10_000_000
"""Bytes. A replica has more, so a smaller `memory` is meant as another unit."""
HAPROXY_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"


def check_relations(deployments: dict[str, dict[str, Any]], settings: Settings, request_timeout_s: float | None) -> None:
    """Check the settings of an application against each other.

    Args:
        deployments: its entries by name.
        request_timeout_s: of `http_options`, seconds.
    Raises:
        ConfigurationError: two settings contradict each other, and the message names both; or Ray Serve would not start a deployment.
    """
    _check_placement(deployments)
    _check_ongoing(deployments, settings)
    _check_admission(deployments.get("Ingress", {}), settings)
    _check_autoscaling(deployments, settings)
    _check_urls(deployments, settings)
    _check_timeout(request_timeout_s, settings)
    _check_shutdown(deployments.get("Ingress", {}), settings)


def _check_placement(deployments: dict[str, dict[str, Any]]) -> None:
    for name, entry in deployments.items():
        options = {option: entry[option] for option in PLACEMENT if option in entry}
        resources = options.get("ray_actor_options") or {}
        gpus, memory = resources.get("num_gpus") or 0, resources.get("memory") or 0
        if gpus > 1 and gpus % 1:
            raise ConfigurationError(
                f"deployments[{name}].ray_actor_options.num_gpus: {gpus:g}; above 1 Ray grants whole GPUs only"
            )
        if 0 < memory < LEAST_MEMORY:
            raise ConfigurationError(
                f"deployments[{name}].ray_actor_options.memory: {memory:g} bytes are less than a replica takes; 1.5 GB is 1500000000"
            )
        try:
            CLASSES[name].options(**options)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"deployments[{name}]: {error}") from error


def _check_admission(ingress: dict[str, Any], settings: Settings) -> None:
    """Requests beyond max_ongoing_requests, health probes included, would wait in Ray instead of being refused by us."""
    ongoing, limits = ingress.get("max_ongoing_requests", _default("Ingress")), settings.ingress
    images = limits.max_images_in_flight + limits.max_urls + limits.max_large_images
    if ongoing <= images + MAX_BODIES_ARRIVING:
        raise ConfigurationError(
            f"deployments[Ingress]: max_ongoing_requests ({ongoing}) must be above the images that args.ingress admits ({images}: "
            f"max_images_in_flight + max_urls + max_large_images) plus {MAX_BODIES_ARRIVING} arriving bodies: requests beyond it, health "
            "probes too, wait instead of being refused"
        )


def _check_urls(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """Each URL occupies a call at an ImageLoader while it is fetched: slow hosts must not occupy all calls."""
    if settings.layout == "together":
        return
    ingresses, loader = replicas(deployments.get("Ingress", {}))[1], deployments.get("ImageLoader", {})
    calls = max(replicas(loader)[0], 1) * loader.get("max_ongoing_requests", _default("ImageLoader"))
    if ingresses * settings.ingress.max_urls_in_flight >= calls:
        raise ConfigurationError(
            f"args.ingress.max_urls_in_flight ({settings.ingress.max_urls_in_flight}) with {ingresses} ingress replica(s) can occupy all "
            f"{calls} calls that the ImageLoaders accept at a time (min_replicas x max_ongoing_requests): slow URLs would block "
            "all other images"
        )


def replicas(deployment: dict[str, Any]) -> tuple[int, int]:
    """The fewest and the most replicas of a deployment."""
    if scaled := autoscaling(deployment):
        return scaled.min_replicas, scaled.max_replicas
    count = deployment.get("num_replicas") or 1
    return count, count


def autoscaling(deployment: dict[str, Any]) -> AutoscalingConfig | None:
    """The autoscaling configuration as Ray reads it; `num_replicas: auto` is autoscaling with other defaults. None without autoscaling."""
    given = deployment.get("autoscaling_config") or {}
    if deployment.get("num_replicas") == "auto":
        given = AutoscalingConfig.default().model_dump(exclude_unset=True) | given
    return validated(AutoscalingConfig, given, f"deployments[{deployment['name']}].autoscaling_config") if given else None


def _default(name: str) -> int:
    """A deployment's max_ongoing_requests if the file does not set it."""
    return int(CLASSES[name].max_ongoing_requests)


def _check_ongoing(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """The Detector checks this too, but only when its replica starts."""
    name = "Ingress" if settings.layout == "together" else "Detector"
    ongoing = deployments.get(name, {}).get("max_ongoing_requests", _default(name))
    check_ongoing(name, ongoing, settings.detector.max_batch)


def _check_timeout(request_timeout_s: float | None, settings: Settings) -> None:
    """Ray and HAProxy answer their own timeouts without our JSON, so theirs must be longer than ours."""
    silence_s = os.environ.get(HAPROXY_TIMEOUT)
    if silence_s and silence_s.isdecimal() and int(silence_s) <= settings.ingress.timeout_s:
        raise ConfigurationError(
            f"{HAPROXY_TIMEOUT} ({silence_s}, see ray.env) must be above args.ingress.timeout_s ({settings.ingress.timeout_s:g}): "
            "HAProxy would end a request before the service can answer it with 408"
        )
    if request_timeout_s and settings.ingress.timeout_s >= request_timeout_s:
        raise ConfigurationError(
            f"http_options.request_timeout_s ({request_timeout_s:g}) must be above args.ingress.timeout_s "
            f"({settings.ingress.timeout_s:g}): Ray would end a request before the service can answer it with 408"
        )


def _check_shutdown(ingress: dict[str, Any], settings: Settings) -> None:
    """A replica that an update stops takes requests while it drains, then finishes those that it has."""
    draining_s = float(os.environ.get(DRAINING) or 30) if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else 0.0
    given = ingress.get("graceful_shutdown_timeout_s")
    given_s: float = CLASSES["Ingress"]._deployment_config.graceful_shutdown_timeout_s if given is None else given
    if given_s <= (needed_s := draining_s + settings.ingress.timeout_s):
        draining = f" plus {DRAINING} ({draining_s:g})" if draining_s else ""
        raise ConfigurationError(
            f"deployments[Ingress].graceful_shutdown_timeout_s ({given_s:g}) must be above {needed_s:g}, args.ingress.timeout_s "
            f"({settings.ingress.timeout_s:g}){draining}: an update would end requests that are being scored"
        )


def _check_autoscaling(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A stage would silently stay below max_replicas if its target is more calls than the ingresses ever have in flight."""
    scaled = {name: config for name, deployment in deployments.items() if (config := autoscaling(deployment))}
    ingresses = replicas(deployments.get("Ingress", {}))[1]
    groups = settings.ingress.groups
    for name, wanted in scaled.items():
        if name == "Ingress":
            continue
        target = wanted.get_target_ongoing_requests()
        if ingresses * groups.max_in_flight <= target * (wanted.max_replicas - 1):
            raise ConfigurationError(
                f"deployments[{name}].autoscaling_config: {wanted.max_replicas} replicas are never reached: the target is "
                f"{target:g} calls (of up to {groups.max_images} images) per replica, and the ingresses have at most "
                f"{ingresses} x {groups.max_in_flight} calls in flight. Raise args.ingress.groups.max_in_flight or lower "
                "target_ongoing_requests."
            )
