"""Ray Serve's REST API, as `serve deploy` and `serve status` use it: apply a configuration, wait until it runs."""

from __future__ import annotations

import time
from typing import Any

import yaml
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from jobs.command_line import CommandFault
from serve_app.local_run import reason_of

POLL_S = 1.0
ANSWER_S = 30.0
"""How long Ray's dashboard may take to answer, seconds. Ray's client waits for ever."""


class Dashboard(ServeSubmissionClient):
    """Ray's client of the dashboard, with a time limit for each request."""

    def _do_request(self, *args: Any, **options: Any) -> Any:
        return super()._do_request(*args, **{"timeout": ANSWER_S, **options})


class ServeApi:
    """Client of one cluster's REST API.

    Args:
        address: of Ray's dashboard, http://HOST:8265.
    Raises:
        CommandFault: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            self._client = Dashboard(address)
        except (ValueError, OSError) as error:
            raise CommandFault(f"--address {address}: {str(error).splitlines()[0]}") from error
        self._address = address

    def apply(self, config: str) -> None:
        """Make the cluster run this serve_config.yaml.

        Raises:
            CommandFault: it is refused, or Ray's dashboard does not answer.
        """
        try:
            self._client.deploy_applications(yaml.safe_load(config))
        except RuntimeError as error:
            raise CommandFault(f"Ray Serve refuses the configuration: {str(error).strip().splitlines()[-1]}") from error
        except OSError as error:
            raise CommandFault(f"{self._silent(error)}; `serve status` says what runs") from error

    def wait_until_running(self, application: str, timeout_s: float) -> None:
        """Return once all replicas are of the newest configuration.

        Raises:
            CommandFault: it failed, or did not run in time.
        """
        ends = time.monotonic() + timeout_s
        while True:
            details = self._details_of(application)
            if details.get("status") == "RUNNING":
                return
            if details.get("status") == "DEPLOY_FAILED":  # UNHEALTHY, of a replica that died meanwhile, passes
                raise CommandFault(f"the new replicas do not start: {_reason(details)}")
            if time.monotonic() > ends:
                raise CommandFault(
                    f"the new replicas did not run within {timeout_s:g} s ({details.get('status')}); room for another Detector is needed "
                    f"beside the old one (python -m serve_app.config_file says how much): {_reason(details)}"
                )
            time.sleep(POLL_S)

    def _details_of(self, application: str) -> dict[str, Any]:
        """What the dashboard says of an application. Without an answer of it, that: it may be back before the time is over."""
        try:
            return dict(self._client.get_serve_details()["applications"].get(application) or {})
        except (OSError, RuntimeError) as error:
            return {"status": "unknown", "message": self._silent(error)}

    def _silent(self, error: Exception) -> str:
        return f"Ray's dashboard at {self._address} does not answer ({type(error).__name__})"


def _reason(details: dict[str, Any]) -> str:
    """What Ray Serve says of the application, or of the first of its deployments that is not healthy."""
    places = [details, *(details.get("deployments") or {}).values()]
    return next(filter(None, (reason_of(place.get("message") or "") for place in places)), "Ray Serve does not say why")
