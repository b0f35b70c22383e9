"""What one part of a serve_config.yaml asks of another: bounds that contradict each other, replicas that would never be wanted."""

import os
from typing import Any

from ray.serve.config import AutoscalingConfig

from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.ingress import Ingress
from deployments.settings import Settings
from pipeline.errors import ConfigurationError
from serve_app.body import BODIES_COMING
from serve_app.config_keys import validated

HAPROXY_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"


def check_relations(deployments: dict[str, dict[str, Any]], settings: Settings, request_timeout_s: float | None) -> None:
    """Check an application.

    Args:
        deployments: its entries by name.
        request_timeout_s: of `http_options`.
    Raises:
        ConfigurationError: what contradicts what.
    """
    _check_ongoing(deployments, settings)
    _check_admission(deployments.get("Ingress", {}), settings)
    _check_autoscaling(deployments, settings)
    _check_urls(deployments, settings)
    _check_timeout(request_timeout_s, settings)


def _check_admission(ingress: dict[str, Any], settings: Settings) -> None:
    """What Ray does not let in waits without an answer, probes as well."""
    ongoing, bounds = ingress.get("max_ongoing_requests", _default("Ingress")), settings.ingress
    images = bounds.max_images_in_flight + bounds.max_urls + bounds.max_large_images
    if ongoing <= images + BODIES_COMING:
        raise ConfigurationError(
            f"deployments[Ingress]: max_ongoing_requests ({ongoing}) must be above the images that args.ingress lets in ({images}: "
            f"max_images_in_flight, max_urls, max_large_images) and {BODIES_COMING} bodies on their way in: requests beyond it wait "
            "unanswered, health probes too, instead of being refused"
        )


def _check_urls(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """Each URL holds a call at an ImageLoader for as long as its host takes: slow ones must not take all calls."""
    if settings.layout == "together":
        return
    ingresses, loader = replicas(deployments.get("Ingress", {}))[1], deployments.get("ImageLoader", {})
    calls = max(replicas(loader)[0], 1) * loader.get("max_ongoing_requests", _default("ImageLoader"))
    if ingresses * settings.ingress.max_urls_in_flight >= calls:
        raise ConfigurationError(
            f"args.ingress.max_urls_in_flight ({settings.ingress.max_urls_in_flight}) at {ingresses} ingress replica(s) can take all "
            f"{calls} calls that the ImageLoaders answer at a time (fewest replicas x max_ongoing_requests): slow URLs would hold up "
            "every other image"
        )


def replicas(deployment: dict[str, Any]) -> tuple[int, int]:
    """Fewest and most replicas."""
    if scaled := autoscaling(deployment):
        return scaled.min_replicas, scaled.max_replicas
    count = deployment.get("num_replicas") or 1
    return count, count


def autoscaling(deployment: dict[str, Any]) -> AutoscalingConfig | None:
    """As Ray reads it: `num_replicas: auto` is autoscaling with other defaults."""
    given = deployment.get("autoscaling_config") or {}
    if deployment.get("num_replicas") == "auto":
        given = AutoscalingConfig.default().model_dump(exclude_unset=True) | given
    return validated(AutoscalingConfig, given, f"deployments[{deployment['name']}].autoscaling_config") if given else None


def _default(name: str) -> int:
    """A deployment's max_ongoing_requests where the file does not give it."""
    known: dict[str, Any] = {"Ingress": Ingress, "ImageLoader": ImageLoader, "Detector": Detector}
    return int(known[name].max_ongoing_requests)


def _check_ongoing(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A replica that batches must be handed two batches at once: one runs, the next gathers."""
    name = "Ingress" if settings.layout == "together" else "Detector"
    default = _default(name)
    ongoing = deployments.get(name, {}).get("max_ongoing_requests", default)
    needed = 2 * settings.detector.max_batch
    if ongoing < needed:
        raise ConfigurationError(
            f"deployments[{name}]: max_ongoing_requests {ongoing} cannot fill batches of {settings.detector.max_batch}; "
            f"at least {needed} is needed (its default is {default})"
        )


def _check_timeout(request_timeout_s: float | None, settings: Settings) -> None:
    """Ray's own deadline and HAProxy's are answered without our JSON, so they must come after ours."""
    silence_s = os.environ.get(HAPROXY_TIMEOUT)
    if silence_s and silence_s.isdecimal() and int(silence_s) <= settings.ingress.timeout_s:
        raise ConfigurationError(
            f"{HAPROXY_TIMEOUT} ({silence_s}, of ray.env) must be above args.ingress.timeout_s ({settings.ingress.timeout_s:g}): "
            "HAProxy would end a request before the service can answer it with 408"
        )
    if request_timeout_s and settings.ingress.timeout_s >= request_timeout_s:
        raise ConfigurationError(
            f"http_options.request_timeout_s ({request_timeout_s:g}) must be above args.ingress.timeout_s "
            f"({settings.ingress.timeout_s:g}): Ray would end a request before the service can answer it with 408"
        )


def _check_autoscaling(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A stage whose target is more calls than the ingresses ever have in flight would stay at its fewest replicas, in silence."""
    scaled = {name: config for name, deployment in deployments.items() if (config := autoscaling(deployment))}
    ingresses = replicas(deployments.get("Ingress", {}))[1]
    groups = settings.ingress.groups
    for name, wanted in scaled.items():
        if name == "Ingress":
            continue
        target = wanted.get_target_ongoing_requests()
        if ingresses * groups.max_in_flight <= target * (wanted.max_replicas - 1):
            raise ConfigurationError(
                f"deployments[{name}].autoscaling_config: {wanted.max_replicas} replicas are never reached: each is wanted for "
                f"{target:g} calls (of up to {groups.max_images} images), and the ingresses have at most "
                f"{ingresses} x {groups.max_in_flight} in flight. Raise args.ingress.groups.max_in_flight or lower target_ongoing_requests."
            )
