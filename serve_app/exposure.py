"""Refuses an open door: a server that listens beyond loopback wants keys, or to be told that none are wanted. And a door that cannot
open: certificates where HAProxy stands in front, which speaks plain HTTP to replicas that speak TLS.

Asked twice. Of the file, before anything starts (serve_app.config_file). And of the running cluster, by every ingress
replica before it answers anybody: `serve run`, `serve deploy`, `serve start --http-host` and RAY_SERVE_DEFAULT_HTTP_HOST
all decide where Ray Serve listens, and only the cluster knows who won.
"""

from __future__ import annotations

import ipaddress
import logging
import os

import ray
from ray.serve.context import _get_global_client  # private; Ray Serve 2.60 offers the host nowhere else
from starlette.types import ASGIApp

from deployments.ingress import Ingress
from deployments.settings import AuthSettings, Settings
from pipeline.errors import ConfigurationError
from serve_app.http import http_app

logger = logging.getLogger("ray.serve")


def http_app_unless_exposed(ingress: Ingress, settings: Settings) -> ASGIApp:
    """The HTTP front of an ingress replica; it does not start where it would be an open door.

    Raises:
        ConfigurationError: see `check_exposure`.
    """
    client = _get_global_client()
    if client is not None:
        check_exposure(client.http_config.host, settings.ingress.auth)
        check_certificates(client.http_config.ssl_certfile)
        _warn_of_unreachable_nodes(client.http_config.host)
    return http_app(ingress, settings)


def check_exposure(host: str | None, auth: AuthSettings) -> None:
    """Refuse to listen beyond loopback without keys.

    Args:
        host: `http_options.host`; None where Ray Serve does not listen for HTTP.
        auth: the keys that are set.
    Raises:
        ConfigurationError: the open door; the message says how to close it, or to leave it open on purpose.
    """
    if host is None or is_loopback(host) or auth.keys_env or auth.keys_file or auth.allow_anonymous:
        return
    raise ConfigurationError(
        f"http_options.host is {host}, beyond loopback, but no keys are set: set args.ingress.auth.keys_env or keys_file, "
        f"or args.ingress.auth.allow_anonymous: true if something in front of it checks callers."
    )


def check_certificates(certfile: str | None) -> None:
    """Refuse TLS where it would answer every request with 500: Ray Serve 2.60 gives the certificate to the replicas, not to HAProxy.

    Args:
        certfile: `http_options.ssl_certfile`.
    Raises:
        ConfigurationError: HAProxy is on; the message says what to do.
    """
    if certfile and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigurationError(
            "http_options.ssl_certfile does not work with HAProxy (RAY_SERVE_ENABLE_HA_PROXY=1 in ray.env): let a load balancer in "
            "front speak TLS, or set RAY_SERVE_ENABLE_HA_PROXY=0."
        )


def _warn_of_unreachable_nodes(host: str | None) -> None:
    """HAProxy reaches the Ingress replicas of other nodes at their address; on loopback they wait for requests that never come."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    if host is not None and is_loopback(host) and nodes > 1:
        logger.warning(
            "http_options.host is %s in a cluster of %d nodes: a proxy reaches only the Ingress replicas on its own node. "
            "Set it to 0.0.0.0, and keys (serve_config.gpu.yaml does).",
            host,
            nodes,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; any name but localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
