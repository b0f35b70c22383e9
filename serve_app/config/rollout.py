"""What an update of the configuration needs: settings that change in running replicas, resources for new ones.

A change of `args` replaces every replica; with `max_surge_percent` a new replica starts before the old one stops. A change of the Ingress'
`user_config` restarts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.settings import Settings
from deployments.user_config import with_live_settings
from pipeline.errors import ConfigurationError


def check_user_configs(deployments: Mapping[str, dict[str, Any]], settings: Settings) -> Settings:
    """The settings in effect: `args` with the Ingress' `user_config` applied.

    Raises:
        ConfigurationError: another deployment has a `user_config`, or a setting in it cannot change in running replicas.
    """
    for name, entry in deployments.items():
        if name != "Ingress" and entry.get("user_config") is not None:
            raise ConfigurationError(
                f"deployments[{name}].user_config: only the Ingress takes a user_config; it holds the live settings of all stages"
            )
    return with_live_settings(settings, deployments.get("Ingress", {}).get("user_config"))


def room_for_update(deployments: Mapping[str, dict[str, Any]]) -> str:
    """One line for the user: the resources that must be free for a change of `args` without downtime."""
    surging = {name: entry for name, entry in deployments.items() if entry.get("max_surge_percent")}
    without = [name for name in ("Detector", "Ingress") if name in deployments and name not in surging]
    if not surging:
        return (
            f"a change of args stops the old {without[0]} before the new one starts (its max_surge_percent is 0)"
            if without
            else ""
        )
    need = " and ".join(f"{_room(entry)} for another {name}" for name, entry in surging.items())
    return (
        f"a change of args needs {need}; until it is free, the old replicas keep serving. "
        "A change of deployments[Ingress].user_config replaces no replica"
    )


def _room(entry: Mapping[str, Any]) -> str:
    options = entry.get("ray_actor_options") or {}
    named = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    return " and ".join(f"{count:g} {kind}" for kind, count in named.items() if count)
