"""Checks a serve_config.yaml before Ray Serve sees it: unknown keys, contradictions, an open door.

    python -m serve_app.config_file serve_config.yaml [--ports]

Prints what rate each part of it allows, and the narrowest (serve_app/capacity.py).
With --ports also: whether this machine's ports that it needs are free, which `make serve` asks; in the environment that `serve run` gets.

Ray Serve 2.60 drops most unknown keys without a word and lays two entries for a deployment over one another; here both are errors.
"""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve._private.constants import DEFAULT_HTTP_PORT
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.ingress import Ingress
from deployments.settings import Settings
from pipeline.errors import ConfigurationError
from pipeline.model.zoo import CHECKPOINT_SUFFIXES, locate, official_urls
from serve_app.body import BODIES_COMING
from serve_app.capacity import StageCosts, as_lines, step_of
from serve_app.exposure import check_certificates, check_exposure

BUILDER = "serve_app.app:build_app"
HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Environment variables of Ray Serve and their defaults. The last is where HAProxy sends requests while there is no Ingress. Ray shares
that port: of two services on one machine, one would answer for the other, past its keys."""
STAGES = ("Ingress", "ImageLoader", "Detector", "Polygonizer")
Model = TypeVar("Model", bound=BaseModel)


def check_config(path: Path) -> list[Settings]:
    """Read and check a configuration file.

    Returns:
        The settings of each of our applications in it, at least one.
    Raises:
        ConfigurationError: what is wrong and where.
    """
    return check_document(read_document(path))


def read_document(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_NoKeyTwice)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot be read: {error}") from error


def check_document(document: Any) -> list[Settings]:
    """As `check_config`, of what a file holds."""
    _check_keys(document, ServeDeploySchema, "")
    schema = _validated(ServeDeploySchema, document, "")
    ours = [app for app in schema.model_dump(exclude_unset=True)["applications"] if _is_ours(app["import_path"])]
    if not ours:
        raise ConfigurationError(f"nothing to check: no application has import_path: {BUILDER}")
    return [_check_application(app, schema.http_options) for app in ours]


class _NoKeyTwice(yaml.SafeLoader):
    """YAML whose mappings hold each key once; PyYAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise ConfigurationError(f"line {key.start_mark.line + 1}: {key.value} stands twice in one section")
            seen.add((key.tag, key.value))
        return node


def _is_ours(import_path: str) -> bool:
    """Ray takes a dot as well as a colon before the name."""
    return import_path.replace(":", ".") == BUILDER.replace(":", ".")


def _check_application(app: dict[str, Any], http: HTTPOptionsSchema) -> Settings:
    _check_keys(app.get("args") or {}, Settings, "args")
    settings = _validated(Settings, app.get("args") or {}, "args")
    _check_model(settings.model.name)
    entries = app.get("deployments") or []
    for entry in entries:
        _check_name(entry["name"], settings)
    deployments = {entry["name"]: entry for entry in entries}
    if len(deployments) < len(entries):
        names = [entry["name"] for entry in entries]
        twice = sorted(name for name in deployments if names.count(name) > 1)
        raise ConfigurationError(f"deployments: more than one entry for {', '.join(twice)}; Ray would lay them over one another")
    _check_ongoing(deployments, settings)
    _check_admission(deployments.get("Ingress", {}), settings)
    _check_autoscaling(deployments, settings)
    _check_urls(deployments, settings)
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


def _check_model(name: str) -> None:
    """A typing error in a name would be found by a replica, which starts again and again."""
    if name not in official_urls() and Path(name).suffix not in CHECKPOINT_SUFFIXES:
        locate(name)


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
    ingresses, loader = _replicas(deployments.get("Ingress", {}))[1], deployments.get("ImageLoader", {})
    calls = max(_replicas(loader)[0], 1) * loader.get("max_ongoing_requests", _default("ImageLoader"))
    if ingresses * settings.ingress.max_urls_in_flight >= calls:
        raise ConfigurationError(
            f"args.ingress.max_urls_in_flight ({settings.ingress.max_urls_in_flight}) at {ingresses} ingress replica(s) can take all "
            f"{calls} calls that the ImageLoaders answer at a time (fewest replicas x max_ongoing_requests): slow URLs would hold up "
            "every other image"
        )


def _replicas(deployment: dict[str, Any]) -> tuple[int, int]:
    """Fewest and most replicas."""
    if scaled := _autoscaling(deployment):
        return scaled.min_replicas, scaled.max_replicas
    count = deployment.get("num_replicas") or 1
    return count, count


def _autoscaling(deployment: dict[str, Any]) -> AutoscalingConfig | None:
    """As Ray reads it: `num_replicas: auto` is autoscaling with other defaults."""
    given = deployment.get("autoscaling_config") or {}
    if deployment.get("num_replicas") == "auto":
        given = AutoscalingConfig.default().model_dump(exclude_unset=True) | given
    return _validated(AutoscalingConfig, given, f"deployments[{deployment['name']}].autoscaling_config") if given else None


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
    """Ray's own deadline is answered without our JSON, so it must come after ours."""
    if request_timeout_s and settings.ingress.timeout_s >= request_timeout_s:
        raise ConfigurationError(
            f"http_options.request_timeout_s ({request_timeout_s:g}) must be above args.ingress.timeout_s "
            f"({settings.ingress.timeout_s:g}): Ray would end a request before the service can answer it with 408"
        )


def _check_autoscaling(deployments: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A stage whose target is more calls than the ingresses ever have in flight would stay at its fewest replicas, in silence."""
    scaled = {name: config for name, deployment in deployments.items() if (config := _autoscaling(deployment))}
    ingresses = _replicas(deployments.get("Ingress", {}))[1]
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


def check_ports(http: dict[str, Any]) -> None:
    """Try the ports that the service and its HAProxy listen on; with another service there, this one would start in vain.

    Args:
        http: the file's `http_options`.
    Raises:
        ConfigurationError: one is taken; what changes it.
    """
    wanted = [("http_options.port", http.get("host") or "127.0.0.1", int(http.get("port", DEFAULT_HTTP_PORT)))]
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        wanted += [(name, "0.0.0.0", int(os.environ.get(name) or port)) for name, port in HAPROXY_PORTS.items()]
    for setting, host, port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ConfigurationError(
                    f"nothing can listen on port {port} of {host} here ({getattr(error, 'strerror', None) or error}): "
                    f"end what does, or choose another {setting}"
                ) from error


def absent_files(settings: Settings) -> list[Path]:
    """Files that the settings name and that are not here; they may be elsewhere."""
    model = Path(settings.model.name)
    named = [model if model.suffix in CHECKPOINT_SUFFIXES else None, settings.ingress.auth.keys_file]
    return [path for path in named if path is not None and not path.expanduser().exists()]


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.config_file", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--ports", action="store_true", help="also check that this machine's ports that the service needs are free"
    )
    args = parser.parse_args()
    path: Path = args.path
    try:
        document = read_document(path)
        applications = check_document(document)
        if args.ports:
            check_ports(document.get("http_options") or {})
    except ConfigurationError as error:
        print(f"{path}: {error.message}", file=sys.stderr)
        return 1
    for settings in applications:
        for absent in absent_files(settings):
            print(
                f"{path}: note: {absent} is not on this machine; it must be on every node that runs the service", file=sys.stderr
            )
    print(f"{path}: good; model {', '.join(settings.model.name for settings in applications)}")
    for settings, app in zip(
        applications, filter(lambda app: _is_ours(app["import_path"]), document["applications"]), strict=True
    ):
        deployments = {entry["name"]: entry for entry in app.get("deployments") or []}
        print(*as_lines(settings, deployments, StageCosts(), step_of(settings, deployments)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
