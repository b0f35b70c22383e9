"""Refuses to serve beyond loopback without keys, unless `allow_anonymous` is set. Also refuses TLS certificates together with HAProxy,
which speaks plain HTTP to the replicas.

Checked twice: in the file, before anything starts (serve_app.config_file), and in the running cluster, by every ingress replica before its
first request. `serve run`, `serve deploy`, `serve start --http-host` and RAY_SERVE_DEFAULT_HTTP_HOST can all set the address that Ray Serve
listens on; only the running cluster knows the result.
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
from serve_app.http.routes import http_app

logger = logging.getLogger("ray.serve")


def http_app_unless_exposed(ingress: Ingress, settings: Settings) -> ASGIApp:
    """The ASGI application of an ingress replica, unless it would be exposed without keys.

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
        host: `http_options.host`; None if Ray Serve does not listen for HTTP.
        auth: the section `ingress.auth`.
    Raises:
        ConfigurationError: the service would be reachable without keys; the message says how to set keys, or to allow it on purpose.
    """
    if host is None or is_loopback(host) or auth.keys_env or auth.keys_file or auth.allow_anonymous:
        return
    raise ConfigurationError(
        f"http_options.host is {host}, beyond loopback, but no keys are set: set args.ingress.auth.keys_env or keys_file, "
        f"or args.ingress.auth.allow_anonymous: true if a gateway in front checks callers."
    )


def check_certificates(certfile: str | None) -> None:
    """Refuse TLS together with HAProxy: Ray Serve 2.60 gives the certificate to the replicas, not to HAProxy, and every request fails
    with 500.

    Args:
        certfile: `http_options.ssl_certfile`.
    Raises:
        ConfigurationError: a certificate is set and HAProxy is on.
    """
    if certfile and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigurationError(
            "http_options.ssl_certfile does not work with HAProxy (RAY_SERVE_ENABLE_HA_PROXY=1 in ray.env): terminate TLS in a "
            "load balancer in front, or set RAY_SERVE_ENABLE_HA_PROXY=0."
        )


def _warn_of_unreachable_nodes(host: str | None) -> None:
    """Warn if Ingress replicas on other nodes get no requests: HAProxy connects to their node's address, and they listen on loopback."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    if host is not None and is_loopback(host) and nodes > 1:
        logger.warning(
            "http_options.host is %s in a cluster of %d nodes: a proxy reaches only the Ingress replicas on its own node. "
            "Set it to 0.0.0.0 and set keys, as serve_config.gpu.yaml does.",
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
