"""Names the part of a service that a process belongs to: a stage, its decoders, or one of Ray's processes."""

from __future__ import annotations

import psutil

from deployments.settings import DEPLOYMENTS
from loadtest.service.processes import title_of

DETECTOR = "Detector"
DECODERS = "decoders"
_PARTS = {
    "raylet/raylet": "raylet",  # first: its command line holds those of the agents that it starts
    "ray::HAProxyManager": "HAProxy's manager",
    "haproxy": "HAProxy",
    "ray::ProxyActor": "proxy",
    "ray::ServeController": "controller",
    "log_monitor": "log monitor",
    "runtime_env": "runtime env agent",
    "dashboard/agent": "node agent",
    "ray::DashboardAgent": "node agent",
    "ray-dashboard": "dashboard",
    "dashboard/dashboard": "dashboard",
    "autoscaler": "autoscaler",
    "gcs_server": "gcs",
}
"""Patterns in command lines of Ray's processes, and names; the first match counts."""


def part_of(process: psutil.Process) -> str:
    """Which part of the service a process belongs to."""
    title = title_of(process)
    if "pipeline.images.decoder_worker" in title:
        return DECODERS
    if "ServeReplica" in title:
        return next((name for name in DEPLOYMENTS if f":{name}" in title), "other")
    return next((part for sign, part in _PARTS.items() if sign in title), "other")
