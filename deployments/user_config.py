"""Ray Serve's `user_config`: settings that change in running replicas."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from deployments.settings import Settings, first_fault
from pipeline.errors import ConfigurationError

logger = logging.getLogger("ray.serve")

LIVE: dict[str, frozenset[str]] = {
    "ingress": frozenset(
        "timeout_s max_body_mb max_answer_mb max_images_per_request max_images_in_flight max_urls max_large_images max_share_per_key "
        "overload_status retry_after_s ready_cache_s".split()
    ),
    "detector": frozenset({"score_threshold", "max_detections"}),
    "polygonizer": frozenset({"tolerance_px", "max_points", "decimals", "holes"}),
}
"""Settings that can change in running Ingress replicas, by section: limits and defaults of requests. All others need new replicas."""


def with_live_settings(settings: Settings, user_config: Any) -> Settings:
    """The settings with the Ingress' `user_config` applied.

    Args:
        settings: from `args`.
        user_config: sections and settings as in `args`, only those in `LIVE`; None changes nothing.
    Raises:
        ConfigurationError: a setting is unknown, not in `LIVE`, or has an invalid value.
    """
    location = "deployments[Ingress].user_config"
    if not isinstance(user_config or {}, dict):
        raise ConfigurationError(f"{location}: expected sections {', '.join(LIVE)}, got {user_config!r}")
    document = settings.model_dump()
    for section, values in (user_config or {}).items():
        if section not in LIVE or not isinstance(values, dict):
            raise ConfigurationError(f"{location}.{section}: expected one of the sections {', '.join(LIVE)}, with settings in it")
        if wrong := sorted(map(str, set(values) - LIVE[section])):
            unknown = [name for name in wrong if name not in document[section]]
            fault = f"unknown key(s) {', '.join(unknown)}"
            if not unknown:
                fault = f"{', '.join(wrong)} cannot change in running replicas; set it under args"
            raise ConfigurationError(f"{location}.{section}: {fault}. Live settings: {', '.join(sorted(LIVE[section]))}")
        document[section] |= values
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(first_fault(error, document, location)) from error


class TakesUserConfig:
    """Base of the deployments: takes `user_config` from Ray.

    Ray checks nothing in it, stops a replica whose `reconfigure` raises, and starts another, which fails in the same way. So only a
    new replica refuses a wrong `user_config`; a running one logs it and keeps its settings.
    """

    _is_running = False

    def reconfigure(self, user_config: Any, rank: Any = None) -> None:  # noqa: ARG002
        """Called by Ray at the start and when `user_config` changes.

        Args:
            user_config: for `apply`.
            rank: not used; but only with this parameter Ray also calls without a `user_config`: at the start, and when it is removed.
        Raises:
            ConfigurationError: the `user_config` that a new replica starts with is wrong.
        """
        try:
            self.apply(user_config)
        except ConfigurationError as error:
            if not self._is_running:
                raise
            logger.error("user_config is refused, and the settings stay as they are: %s", error)
        self._is_running = True

    def apply(self, user_config: Any) -> None:
        """Apply a `user_config`; None for none.

        Raises:
            ConfigurationError: it is wrong.
        """
        if user_config is not None:
            raise ConfigurationError("only the Ingress takes a user_config; it holds the live settings of all stages")
