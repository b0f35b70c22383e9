"""Checks a serve_config.yaml before Ray Serve sees it: unknown keys, contradictions, an open door.

    python -m serve_app.config_file serve_config.yaml

Ray Serve 2.60 drops unknown keys under `deployments` and `http_options` without a word; here they are errors.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeDeploySchema

from pipeline.errors import ConfigurationError
from serve_app.exposure import check_certificates, check_exposure
from serve_app.settings import Settings

BUILDER = "serve_app.app:build_app"
BATCHING_DEPLOYMENT = "Detector"
STAGES = ("Ingress", "ImageLoader", "Detector", "Polygonizer")


def check_config(path: Path) -> list[Settings]:
    """Read and check a configuration file.

    Returns:
        The settings of each of our applications in it.
    Raises:
        ConfigurationError: what is wrong and where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: expected a mapping at the top level")
    _known_keys(document.get("http_options") or {}, HTTPOptions.model_fields, "http_options")
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {_first_fault(error)}") from error
    ours = [app for app in document["applications"] if app.get("import_path") == BUILDER]
    return [_check_application(app, document) for app in ours]


def _check_application(app: dict[str, Any], document: dict[str, Any]) -> Settings:
    try:
        settings = Settings.model_validate(app.get("args") or {})
    except ValidationError as error:
        raise ConfigurationError(f"args: {_first_fault(error)}") from error
    deployments = app.get("deployments") or []
    for deployment in deployments:
        _check_deployment(deployment, settings)
    _check_autoscaling({deployment["name"]: deployment for deployment in deployments}, settings)
    http = document.get("http_options") or {}
    check_exposure(http.get("host", HTTPOptions().host), settings.ingress.auth)
    check_certificates(http.get("ssl_certfile"))
    return settings


def _check_deployment(deployment: dict[str, Any], settings: Settings) -> None:
    name = deployment.get("name")
    place = f"deployments[{name}]"
    if name not in STAGES:
        raise ConfigurationError(f"{place}: there is no such deployment; known: {', '.join(STAGES)}")
    if settings.layout == "together" and name != STAGES[0]:
        raise ConfigurationError(
            f"{place}: with layout: together there is only the deployment {STAGES[0]}, which holds all stages"
        )
    _known_keys(deployment, DeploymentSchema.model_fields, place)
    _known_keys(deployment.get("ray_actor_options") or {}, RayActorOptionsSchema.model_fields, f"{place}.ray_actor_options")
    ongoing = deployment.get("max_ongoing_requests")
    needed = 2 * settings.detector.max_batch
    if name == BATCHING_DEPLOYMENT and ongoing is not None and ongoing < needed:
        raise ConfigurationError(
            f"{place}: max_ongoing_requests {ongoing} cannot fill batches of {settings.detector.max_batch}; at least {needed} is needed"
        )


def _check_autoscaling(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A stage whose target is more calls than the ingresses ever have under way would stay at its fewest replicas, in silence."""
    ingress = deployments.get("Ingress", {})
    ingresses = (ingress.get("autoscaling_config") or {}).get("max_replicas") or ingress.get("num_replicas") or 1
    if not isinstance(ingresses, int):
        return
    groups = settings.ingress.groups
    for name, deployment in deployments.items():
        autoscaling = deployment.get("autoscaling_config")
        if name == "Ingress" or not autoscaling:
            continue
        wanted = AutoscalingConfig.model_validate(autoscaling)
        most = wanted.target_ongoing_requests * (wanted.max_replicas - 1)
        if ingresses * groups.max_under_way <= most:
            raise ConfigurationError(
                f"deployments[{name}].autoscaling_config: {wanted.max_replicas} replicas are never reached: each is wanted for "
                f"{wanted.target_ongoing_requests:g} calls (of up to {groups.max_images} images), and the ingresses have at most "
                f"{ingresses} x {groups.max_under_way} under way. Raise args.ingress.groups.max_under_way, or lower target_ongoing_requests."
            )


def _known_keys(section: dict[str, Any], known: Any, place: str) -> None:
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise ConfigurationError(f"{place}: unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}"


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.config_file", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    try:
        applications = check_config(path)
    except ConfigurationError as error:
        print(f"{path}: {error.message}", file=sys.stderr)
        return 1
    print(f"{path}: good; model {', '.join(settings.model.name for settings in applications)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
