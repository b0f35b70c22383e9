"""Ray Serve's REST API, as `serve deploy` and `serve status` use it: apply a configuration, wait until it runs."""

from __future__ import annotations

import time
from typing import Any

import yaml
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from jobs.command_line import CommandFault
from serve_app.local_run import reason_of

POLL_S = 1.0


class ServeApi:
    """Of one cluster.

    Args:
        address: of Ray's dashboard, http://HOST:8265.
    Raises:
        CommandFault: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            self._client = ServeSubmissionClient(address)
        except (ValueError, ConnectionError) as error:
            raise CommandFault(f"--address {address}: {str(error).splitlines()[0]}") from error

    def apply(self, config: str) -> None:
        """Make the cluster run this serve_config.yaml.

        Raises:
            CommandFault: it is refused.
        """
        try:
            self._client.deploy_applications(yaml.safe_load(config))
        except RuntimeError as error:
            raise CommandFault(f"Ray Serve refuses the configuration: {str(error).strip().splitlines()[-1]}") from error

    def wait_until_running(self, application: str, timeout_s: float) -> None:
        """Return once all replicas are of the newest configuration.

        Raises:
            CommandFault: it failed, or did not run in time.
        """
        ends = time.monotonic() + timeout_s
        while True:
            told: dict[str, Any] = self._client.get_serve_details()["applications"].get(application) or {}
            if told.get("status") == "RUNNING":
                return
            if told.get("status") == "DEPLOY_FAILED":  # UNHEALTHY, of a replica that died meanwhile, passes
                raise CommandFault(f"the new replicas do not start: {_reason(told)}")
            if time.monotonic() > ends:
                raise CommandFault(
                    f"the new replicas did not run within {timeout_s:g} s ({told.get('status')}); room for another Detector is needed "
                    f"beside the old one (python -m serve_app.config_file says how much): {_reason(told)}"
                )
            time.sleep(POLL_S)


def _reason(told: dict[str, Any]) -> str:
    """What Ray Serve says of the application, or of the first of its deployments that is not healthy."""
    messages = [told.get("message"), *(deployment.get("message") for deployment in (told.get("deployments") or {}).values())]
    return next(filter(None, (reason_of(message or "") for message in messages)), "Ray Serve does not say why")
