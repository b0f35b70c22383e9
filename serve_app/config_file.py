"""Checks a serve_config.yaml before Ray Serve reads it: unknown keys, contradictions, a public host without keys.

    python -m serve_app.config_file serve_config.yaml [--ports]
    python -m serve_app.config_file deploy/rayservice.yaml       # checks its serveConfigV2

Also prints the rate that each part of the configuration allows, and the bottleneck (serve_app/config/capacity.py).
`--ports` checks that the ports which the service needs are free on this machine; `make serve` does that too.
Ray's variables are taken from the environment, then from a ray.env beside the file, as `make serve` does; of a manifest from the `env` of
its pods, then from this project's ray.env, which the image has. A manifest's pods must reach the service and hold its replicas.

Ray Serve 2.60 silently drops most unknown keys and merges two entries for one deployment; here both are errors.
"""

import argparse
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray._common.utils import import_attr
from ray.serve._private.constants import DEFAULT_HTTP_PORT
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from deployments.settings import DEPLOYMENTS, Settings
from pipeline.errors import ConfigurationError
from pipeline.images.fetch import make_ssl_context
from pipeline.model.zoo import CHECKPOINT_SUFFIXES, locate, official_urls
from serve_app.config.capacity import StageCosts, as_lines, step_of
from serve_app.config.manifest import check_pods, environment_of_pods, serve_config_of
from serve_app.config.ray_env import set_ray_env
from serve_app.config.relations import check_relations
from serve_app.config.rollout import check_user_configs, room_for_update
from serve_app.config.schema import check_keys, validated
from serve_app.http.exposure import check_certificates, check_exposure
from serve_app.keys import KeyRing

BUILDER = "serve_app.app:build_app"
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMAGE_ENV = Path(__file__).parents[1] / "ray.env"
"""The variables of deploy/Dockerfile, but for those that the manifest sets."""
HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Environment variables of Ray Serve and their default ports. HAProxy sends requests to the last one while no Ingress is up. Ray opens it
with SO_REUSEPORT: with two services on one machine, one would answer requests for the other and bypass its keys."""


class Application(NamedTuple):
    """One of our applications in a file: its settings, and the entries of its deployments by name."""

    settings: Settings
    deployments: dict[str, dict[str, Any]]


def check_config(path: Path) -> list[Settings]:
    """Read and check a configuration file, or a KubeRay manifest with its `serveConfigV2`.

    Returns:
        The settings of each of our applications in it, at least one.
    Raises:
        ConfigurationError: what is wrong and where.
    """
    return [application.settings for application in _check(*_configuration(path))]


def _check(document: Any, manifest: dict[str, Any] | None) -> list[Application]:
    applications = check_document(document)
    if manifest:
        for application in applications:
            check_pods(manifest, document, application.deployments)
    return applications


def read_document(path: Path) -> Any:
    """Parse a file as YAML; a key given twice is an error.

    Raises:
        ConfigurationError: it cannot be read, is not UTF-8 or not one YAML document.
    """
    return _only(_documents(path))


def _configuration(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """As `read_document`, and None; of a KubeRay manifest, its `serveConfigV2`, and the manifest."""
    documents = _documents(path)
    manifests = [each for each in documents if isinstance(each, dict) and each.get("kind") == "RayService"]
    if not manifests:
        return _only(documents), None
    try:
        return yaml.load(serve_config_of(manifests[0]), Loader=_UniqueKeyLoader), manifests[0]
    except yaml.YAMLError as error:
        raise ConfigurationError(f"spec.serveConfigV2 cannot be read: {error}") from error


def _only(documents: list[Any]) -> Any:
    if len(documents) > 1:
        raise ConfigurationError(f"holds {len(documents)} YAML documents; expected one")
    return documents[0] if documents else None


def _documents(path: Path) -> list[Any]:
    try:
        return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"cannot be read as UTF-8 text: {error}") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot be read: {error}") from error


def check_document(document: Any) -> list[Application]:
    """Our applications in a file already parsed; errors as `check_config`."""
    check_keys(document, ServeDeploySchema, "")
    schema = validated(ServeDeploySchema, document, "")
    if not 0 < schema.http_options.port < 2**16:
        raise ConfigurationError(f"http_options.port: 1 to 65535, got {schema.http_options.port}")
    if schema.tracing_config and schema.tracing_config.enabled:
        _check_import("tracing_config.exporter_import_path", schema.tracing_config.exporter_import_path)
    _check_import(f"{CALLBACK} (see ray.env)", os.environ.get(CALLBACK))
    ours = [app for app in schema.model_dump(exclude_unset=True)["applications"] if _is_ours(app["import_path"])]
    if not ours:
        raise ConfigurationError(f"nothing to check: no application has import_path: {BUILDER}")
    return [_check_application(app, schema.http_options) for app in ours]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping with a duplicate key; PyYAML would silently take the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise ConfigurationError(f"line {key.start_mark.line + 1}: {key.value} is given twice in one section")
            seen.add((key.tag, key.value))
        return node


def _check_import(setting: str, import_path: str | None) -> None:
    """Find a wrong path here: Ray would import it when the next replica or proxy starts, which then fails."""
    try:
        if import_path:
            import_attr(import_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{setting}: {import_path} cannot be imported: {error}") from error


def _is_ours(import_path: str) -> bool:
    """Ray accepts a dot or a colon before the name."""
    return import_path.replace(":", ".") == BUILDER.replace(":", ".")


def _check_application(app: dict[str, Any], http: HTTPOptionsSchema) -> Application:
    _check_prefix(app.get("route_prefix"))
    check_keys(app.get("args") or {}, Settings, "args")
    settings = validated(Settings, app.get("args") or {}, "args")
    _check_model(settings.model.name)
    entries = app.get("deployments") or []
    for entry in entries:
        _check_name(entry["name"], settings)
    deployments = {entry["name"]: entry for entry in entries}
    if len(deployments) < len(entries):
        names = [entry["name"] for entry in entries]
        twice = sorted(name for name in deployments if names.count(name) > 1)
        raise ConfigurationError(f"deployments: more than one entry for {', '.join(twice)}; Ray would merge them")
    settings = check_user_configs(deployments, settings)
    check_relations(deployments, settings, http.request_timeout_s)
    check_exposure(http.host, settings.ingress.auth)
    _check_files(settings)
    check_certificates(http.ssl_certfile)
    return Application(settings, deployments)


def _check_prefix(prefix: str | None) -> None:
    """Ray takes any text and then answers every request with 404."""
    if prefix is not None and not re.fullmatch(r"/|(/[^/{}?#\s]+)+", prefix):
        raise ConfigurationError(
            f"route_prefix: {prefix!r} is not a path; expected / or one such as /scoring, without / at its end"
        )


def _check_name(name: str, settings: Settings) -> None:
    if name not in DEPLOYMENTS:
        raise ConfigurationError(f"deployments[{name}]: there is no such deployment; known: {', '.join(DEPLOYMENTS)}")
    if settings.layout == "together" and name != "Ingress":
        raise ConfigurationError(
            f"deployments[{name}]: with layout: together there is only the deployment Ingress, which holds all stages"
        )


def _check_model(name: str) -> None:
    """Find a misspelt model name here: a replica that fails on it would be restarted again and again."""
    if name not in official_urls() and Path(name).suffix not in CHECKPOINT_SUFFIXES:
        locate(name)


def _check_files(settings: Settings) -> None:
    """Read the files as the replicas do. Files absent here may exist on the nodes: `absent_files` lists them."""
    keys_file, ca_file = settings.ingress.auth.keys_file, settings.image_loader.fetch.ca_file
    if keys_file is not None and _is_here(keys_file):
        KeyRing(keys_file=keys_file)
    if ca_file is not None and _is_here(ca_file):
        make_ssl_context(ca_file)


def _is_here(path: Path | str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def check_ports(http: dict[str, Any]) -> None:
    """Check that the ports of the service and of its HAProxy are free on this machine.

    Args:
        http: the file's `http_options`.
    Raises:
        ConfigurationError: a port is taken; the message names the setting.
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
                    f"cannot listen on port {port} of {host} ({getattr(error, 'strerror', None) or error}): "
                    f"stop the program that uses it, or choose another {setting}"
                ) from error


def absent_files(settings: Settings) -> list[Path]:
    """Files that the settings name and that do not exist on this machine; they may exist on the nodes."""
    return [path for path in _named_files(settings) if not _is_here(path)]


def _named_files(settings: Settings) -> list[Path]:
    model = Path(settings.model.name)
    named = [
        model if model.suffix in CHECKPOINT_SUFFIXES else None,
        settings.ingress.auth.keys_file,
        settings.image_loader.fetch.ca_file,
    ]
    return [Path(path) for path in named if path is not None]


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.config_file", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a serve_config.yaml, or a KubeRay RayService")
    parser.add_argument(
        "--ports", action="store_true", help="also check that the ports the service needs are free on this machine"
    )
    args = parser.parse_args()
    path: Path = args.path
    try:
        document, manifest = _configuration(path)
        if manifest:
            os.environ.update(environment_of_pods(manifest))
        set_ray_env(IMAGE_ENV if manifest else path.parent / "ray.env")
        applications = _check(document, manifest)
        if args.ports:
            check_ports(document.get("http_options") or {})
    except ConfigurationError as error:
        print(f"{path}: {error.message}", file=sys.stderr)
        return 1
    for settings, _ in applications:
        for unset in (name for name in settings.ingress.auth.keys_env if not os.environ.get(name)):
            print(f"{path}: note: {unset} is not set here; it must be set wherever Ray starts", file=sys.stderr)
        for relative in (each for each in _named_files(settings) if not each.expanduser().is_absolute()):
            print(
                f"{path}: note: {relative} is looked up in the folder in which Ray was started, on every node; give its whole path",
                file=sys.stderr,
            )
        for absent in absent_files(settings):
            print(
                f"{path}: note: {absent} is not on this machine; it must be on every node that runs the service", file=sys.stderr
            )
    print(f"{path}: valid; model {', '.join(settings.model.name for settings, _ in applications)}")
    for settings, deployments in applications:
        print(*as_lines(settings, deployments, StageCosts(), step_of(settings, deployments)), sep="\n")
        print(room_for_update(deployments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
