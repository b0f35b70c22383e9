"""Checks a serve_config.yaml before Ray Serve sees it: unknown keys, contradictions, an open door.

    python -m serve_app.config_file serve_config.yaml

Ray Serve 2.60 drops most unknown keys without a word and lays two entries for a deployment over one another; here both are errors.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from deployments.detector import Detector
from deployments.ingress import Ingress
from pipeline.errors import ConfigurationError
from serve_app.exposure import check_certificates, check_exposure
from serve_app.settings import Settings

BUILDER = "serve_app.app:build_app"
STAGES = ("Ingress", "ImageLoader", "Detector", "Polygonizer")
Model = TypeVar("Model", bound=BaseModel)


def check_config(path: Path) -> list[Settings]:
    """Read and check a configuration file.

    Returns:
        The settings of each of our applications in it, at least one.
    Raises:
        ConfigurationError: what is wrong and where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot be read: {error}") from error
    _check_keys(document, ServeDeploySchema, "")
    schema = _validated(ServeDeploySchema, document, "")
    ours = [app for app in schema.model_dump(exclude_unset=True)["applications"] if _is_ours(app["import_path"])]
    if not ours:
        raise ConfigurationError(f"nothing to check: no application has import_path: {BUILDER}")
    return [_check_application(app, schema.http_options) for app in ours]


def _is_ours(import_path: str) -> bool:
    """Ray takes a dot as well as a colon before the name."""
    return import_path.replace(":", ".") == BUILDER.replace(":", ".")


def _check_application(app: dict[str, Any], http: HTTPOptionsSchema) -> Settings:
    settings = _validated(Settings, app.get("args") or {}, "args")
    entries = app.get("deployments") or []
    for entry in entries:
        _check_name(entry["name"], settings)
    deployments = {entry["name"]: entry for entry in entries}
    if len(deployments) < len(entries):
        names = [entry["name"] for entry in entries]
        twice = sorted(name for name in deployments if names.count(name) > 1)
        raise ConfigurationError(f"deployments: more than one entry for {', '.join(twice)}; Ray would lay them over one another")
    _check_ongoing(deployments, settings)
    _check_autoscaling(deployments, settings)
    _check_timeout(http.request_timeout_s, settings)
    check_exposure(http.host, settings.ingress.auth)
    check_certificates(http.ssl_certfile)
    return settings


def _check_name(name: str, settings: Settings) -> None:
    if name not in STAGES:
        raise ConfigurationError(f"deployments[{name}]: there is no such deployment; known: {', '.join(STAGES)}")
    if settings.layout == "together" and name != STAGES[0]:
        raise ConfigurationError(
            f"deployments[{name}]: with layout: together there is only the deployment {STAGES[0]}, which holds all stages"
        )


def _check_ongoing(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A replica that batches must be handed two batches at once: one runs, the next gathers."""
    batching: Any = Ingress if settings.layout == "together" else Detector  # Any: Ray types a decorated class as the class itself
    name, default = batching.name, batching.max_ongoing_requests
    ongoing = deployments.get(name, {}).get("max_ongoing_requests", default)
    needed = 2 * settings.detector.max_batch
    if ongoing < needed:
        raise ConfigurationError(
            f"deployments[{name}]: max_ongoing_requests {ongoing} cannot fill batches of {settings.detector.max_batch}; "
            f"at least {needed} is needed (its default is {default})"
        )


def _check_timeout(request_timeout_s: float | None, settings: Settings) -> None:
    """Ray's own deadline is answered without our JSON, so it must come after ours."""
    if request_timeout_s and settings.ingress.timeout_s >= request_timeout_s:
        raise ConfigurationError(
            f"http_options.request_timeout_s ({request_timeout_s:g}) must be above args.ingress.timeout_s "
            f"({settings.ingress.timeout_s:g}): Ray would end a request before the service can answer it with 408"
        )


def _check_autoscaling(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A stage whose target is more calls than the ingresses ever have under way would stay at its fewest replicas, in silence."""
    scaled = {
        name: _validated(AutoscalingConfig, deployment["autoscaling_config"], f"deployments[{name}].autoscaling_config")
        for name, deployment in deployments.items()
        if deployment.get("autoscaling_config")
    }
    ingress = deployments.get("Ingress", {})
    ingresses = (ingress.get("autoscaling_config") or {}).get("max_replicas") or ingress.get("num_replicas") or 1
    if not isinstance(ingresses, int):
        return
    groups = settings.ingress.groups
    for name, wanted in scaled.items():
        if name == "Ingress":
            continue
        target = wanted.get_target_ongoing_requests()
        if ingresses * groups.max_under_way <= target * (wanted.max_replicas - 1):
            raise ConfigurationError(
                f"deployments[{name}].autoscaling_config: {wanted.max_replicas} replicas are never reached: each is wanted for "
                f"{target:g} calls (of up to {groups.max_images} images), and the ingresses have at most "
                f"{ingresses} x {groups.max_under_way} under way. Raise args.ingress.groups.max_under_way or lower target_ongoing_requests."
            )


def _check_keys(section: Any, model: type[BaseModel], place: str) -> None:
    """Refuse keys that `model`, or the model of a section inside, does not know; what stands under them is for others to judge."""
    here = place or "top level"
    if not isinstance(section, dict):
        raise ConfigurationError(f"{here}: expected a mapping, got {section!r}")
    unknown = sorted(str(key) for key in section if key not in model.model_fields)
    if unknown:
        raise ConfigurationError(f"{here}: unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(model.model_fields))}")
    for key, value in section.items():
        inner = _model_in(model.model_fields[key].annotation)
        below = f"{place}.{key}".lstrip(".")
        if inner and isinstance(value, list):
            for index, item in enumerate(value):
                _check_keys(item, inner, f"{below}[{item.get('name', index) if isinstance(item, dict) else index}]")
        elif inner and value is not None:
            _check_keys(value, inner, below)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Optional[Union[Dict, AutoscalingConfig]]` or `List[DeploymentSchema]`."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)


def _validated(model: type[Model], section: Any, place: str) -> Model:
    try:
        return model.model_validate(section)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, (place, *fault["loc"]))).strip(".")
        raise ConfigurationError(f"{where}: {fault['msg']}") from error


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
