"""Checks a serve_config.yaml before Ray Serve sees it: unknown keys, contradictions, an open door.

    python -m serve_app.config_file serve_config.yaml [--ports]

Prints what rate each part of it allows, and the narrowest (serve_app/capacity.py).
With --ports also: whether this machine's ports that it needs are free, which `make serve` asks.
Variables of Ray come from the environment, then from a ray.env beside the file, as `make serve` reads them.

Ray Serve 2.60 drops most unknown keys without a word and lays two entries for a deployment over one another; here both are errors.
"""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel
from ray.serve._private.constants import DEFAULT_HTTP_PORT
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from deployments.settings import Settings
from pipeline.errors import ConfigurationError
from pipeline.images.fetch import make_ssl_context
from pipeline.model.zoo import CHECKPOINT_SUFFIXES, locate, official_urls
from serve_app.capacity import STAGES, StageCosts, as_lines, step_of
from serve_app.config_keys import check_keys, validated
from serve_app.config_relations import check_relations
from serve_app.exposure import check_certificates, check_exposure
from serve_app.keys import KeyRing
from serve_app.rollout import check_user_configs, room_for_update
from serve_app.start import read_ray_env

BUILDER = "serve_app.app:build_app"
HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Environment variables of Ray Serve and their defaults. The last is where HAProxy sends requests while there is no Ingress. Ray shares
that port: of two services on one machine, one would answer for the other, past its keys."""
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
    check_keys(document, ServeDeploySchema, "")
    schema = validated(ServeDeploySchema, document, "")
    ours = [app for app in schema.model_dump(exclude_unset=True)["applications"] if _is_ours(app["import_path"])]
    if not ours:
        raise ConfigurationError(f"nothing to check: no application has import_path: {BUILDER}")
    return [_check_application(app, schema.http_options) for app in ours]


def applications_in(path: Path) -> list[tuple[Settings, dict[str, dict[str, Any]]]]:
    """Settings of each of our applications, and its deployments' entries by name.

    Raises:
        ConfigurationError: as `check_config`.
    """
    document = read_document(path)
    settings = check_document(document)
    ours = [app for app in document["applications"] if _is_ours(app["import_path"])]
    entries = [{entry["name"]: entry for entry in app.get("deployments") or []} for app in ours]
    return list(zip(settings, entries, strict=True))


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
        raise ConfigurationError(f"deployments: more than one entry for {', '.join(twice)}; Ray would lay them over one another")
    settings = check_user_configs(deployments, settings)
    check_relations(deployments, settings, http.request_timeout_s)
    check_exposure(http.host, settings.ingress.auth)
    _check_files(settings)
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


def _check_files(settings: Settings) -> None:
    """Read them as the replicas do. What is not on this machine may be on the nodes: `absent_files` names it."""
    keys_file, ca_file = settings.ingress.auth.keys_file, settings.image_loader.fetch.ca_file
    if keys_file is not None and _is_here(keys_file):
        KeyRing(keys_file=keys_file)
    if ca_file is not None and _is_here(ca_file):
        make_ssl_context(ca_file)


def _is_here(path: Path | str) -> bool:
    return os.path.exists(os.path.expanduser(path))


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
    named = [
        model if model.suffix in CHECKPOINT_SUFFIXES else None,
        settings.ingress.auth.keys_file,
        settings.image_loader.fetch.ca_file,
    ]
    return [Path(path) for path in named if path is not None and not _is_here(path)]


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.config_file", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--ports", action="store_true", help="also check that this machine's ports that the service needs are free"
    )
    args = parser.parse_args()
    path: Path = args.path
    read_ray_env(path.parent / "ray.env")
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
    for settings, deployments in applications_in(path):
        print(*as_lines(settings, deployments, StageCosts(), step_of(settings, deployments)), sep="\n")
        print(room_for_update(deployments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
