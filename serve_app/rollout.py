"""What a change of the configuration needs: which settings change in running replicas, and what room new replicas take beside the old.

A change of `args` replaces every replica, the Detector beside the old one where `max_surge_percent` says so. A change of the Ingress'
`user_config` restarts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.settings import Settings, with_live_settings
from pipeline.errors import ConfigurationError


def check_user_configs(deployments: Mapping[str, dict[str, Any]], settings: Settings) -> Settings:
    """The settings in effect, those under the Ingress' `user_config` included.

    Raises:
        ConfigurationError: a deployment has one that it does not take, or a setting is not live.
    """
    for name, entry in deployments.items():
        if name != "Ingress" and entry.get("user_config") is not None:
            raise ConfigurationError(
                f"deployments[{name}].user_config: only the Ingress takes one, for the settings of all stages that are live"
            )
    return with_live_settings(settings, deployments.get("Ingress", {}).get("user_config"))


def room_for_update(deployments: Mapping[str, dict[str, Any]]) -> str:
    """One line: what must be free in the cluster when `args` change, so that the network is never down."""
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
        f"a change of args needs {need} beside what runs: without that room the old replicas go on serving and the change waits; "
        "a change of deployments[Ingress].user_config restarts nothing"
    )


def _room(entry: Mapping[str, Any]) -> str:
    options = entry.get("ray_actor_options") or {}
    named = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    return " and ".join(f"{count:g} {kind}" for kind, count in named.items() if count)
