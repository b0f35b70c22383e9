"""Runs the service on this machine: starts it as `serve run` does, prints progress, watches it, stops it.

Calls the `serve run` command itself, so that both read the YAML the same way. Ray's log stays in its files unless `verbose`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import ray
import requests
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema
from ray.serve.scripts import run as serve_run

from pipeline.errors import ConfigurationError
from serve_app.config_file import absent_files, check_document, check_ports, read_document

POLL_S, WATCH_EVERY_S = 0.3, 5.0
CHANGE_AFTER_S, REMIND_AFTER_S = 4.0, 20.0
"""Shortest time between two lines of progress, if the status changed and if it did not."""
LITTLE_SPACE_MB = 500
FAILED_DEPLOYMENT = ("DEPLOY_FAILED", "UNHEALTHY")
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class LocalRun:
    """Start, watch and stop one configuration.

    Args:
        config: a serve_config.yaml.
        verbose: show Ray's log on the terminal.
    Raises:
        ConfigurationError: from `run`: the service cannot start; the message says why.
    """

    def __init__(self, config: Path, *, verbose: bool) -> None:
        self._config, self._verbose = config, verbose
        self._began, self._terminal = time.monotonic(), sys.stdout
        self._wants_key = False

    def run(self) -> None:
        """Check, start and watch the service; returns after Ctrl-C or SIGTERM."""
        with self._quiet():
            self._run(self._check())

    def _run(self, document: ServeDeploySchema) -> None:
        try:
            with _compiling():
                self._start()
                self._wait_until_ready(document)
            self._watch()
        except KeyboardInterrupt:
            self._stop()
        finally:
            with contextlib.suppress(KeyboardInterrupt):  # else its traceback hides why the start failed
                ray.shutdown()

    def _stop(self) -> None:
        self._say("Stopping after the requests in flight. Ctrl-C again stops at once.")
        with contextlib.suppress(KeyboardInterrupt):
            serve.shutdown()
        ray.shutdown()
        self._say("Stopped.")

    def _check(self) -> ServeDeploySchema:
        document = read_document(self._config)
        applications = check_document(document)
        check_ports(document.get("http_options") or {})
        auths = [settings.ingress.auth for settings, _ in applications]
        self._wants_key = any(auth.keys_env or auth.keys_file for auth in auths)
        names = ", ".join(settings.model.name for settings, _ in applications)
        self._check_files([path for settings, _ in applications for path in absent_files(settings)])
        self._say(f"{self._config} is valid. Model: {names}. Starting Ray …")
        return ServeDeploySchema.model_validate(document)

    def _check_files(self, absent: Sequence[Path]) -> None:
        for path in absent:
            if not os.environ.get("RAY_ADDRESS"):
                raise ConfigurationError(
                    f"there is no file {path}; the settings name it (model.name, ingress.auth.keys_file or image_loader.fetch.ca_file)."
                )
            self._say(f"Note: {path} is not on this machine; every node that runs the service needs it.")

    def _start(self) -> None:
        _interrupt_on_signals()
        level = logging.INFO if self._verbose else logging.ERROR
        with _one_line_if_it_fails("Ray"):
            ray.init(namespace="serve", log_to_driver=self._verbose, logging_level=level)
        _interrupt_on_signals()  # Ray's handler of SIGTERM prints a C++ stack trace
        if not self._verbose:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._say("Ray is running. Starting the stages and loading the model (the first start also compiles) …")
        with _one_line_if_it_fails("Ray Serve"):
            serve_run.main([str(self._config), "--non-blocking"], standalone_mode=False)

    def _wait_until_ready(self, document: ServeDeploySchema) -> None:
        urls = {app.name: address_of(document, app.route_prefix or "/") for app in document.applications}
        printed, printed_at = "", time.monotonic()
        while True:
            status = {name: found for name, found in serve.status().applications.items() if name in urls}
            for name, application in status.items():
                if application.status in FAILED:
                    self._give_up(name, application)
            running = [found.status == ApplicationStatus.RUNNING for found in status.values()]
            if len(running) == len(urls) and all(running) and all(_is_ready(url) for url in urls.values()):
                break
            waits = ", ".join(line for application in status.values() for line in waits_for(application))
            if waits and time.monotonic() - printed_at > (CHANGE_AFTER_S if waits != printed else REMIND_AFTER_S):
                self._say(f"Waiting for {waits}")
                printed, printed_at = waits, time.monotonic()
            time.sleep(POLL_S)
        for url in urls.values():
            self._say_ready(url)

    def _say_ready(self, url: str) -> None:
        key = "-H 'Authorization: Bearer <key>' " if self._wants_key else ""
        self._say(
            f"Ready: {url}\n"
            f"    Open it in a browser and drop a photo on it, or:  curl {key}-F image=@photo.jpg {url}score\n"
            f"    API: {url}docs    Logs: {_log_folder()}    Stop: Ctrl-C"
        )

    def _give_up(self, name: str, application: ApplicationStatusOverview) -> NoReturn:
        reason = failure_of(application) or "Ray Serve gives no reason."
        serve.shutdown()
        raise ConfigurationError(f"the application {name} does not start: {reason}\nRay's full log: {_log_folder()}")

    def _watch(self) -> None:
        """Until interrupted: say when an application becomes unhealthy, and when it runs again."""
        failed: set[str] = set()
        while True:
            time.sleep(WATCH_EVERY_S)
            for name, application in serve.status().applications.items():
                is_failed = application.status in FAILED
                if is_failed != (name in failed) and (is_failed or application.status == ApplicationStatus.RUNNING):
                    failed ^= {name}
                    self._say(f"{name} is {application.status.value}. {failure_of(application) if is_failed else ''}".rstrip())

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Within: discard what Ray prints, unless `verbose`; Ray's log files have it too."""
        if self._verbose:
            yield
            return
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {line}", file=self._terminal, flush=True)


def failure_of(application: ApplicationStatusOverview) -> str:
    """Why an application does not run: the message of the deployment that failed, else that of the application; may be empty."""
    failed = [deployment for deployment in application.deployments.values() if deployment.status.value in FAILED_DEPLOYMENT]
    return next(filter(None, (reason_of(deployment.message) for deployment in failed)), reason_of(application.message))


def reason_of(message: str) -> str:
    """The reason in a status message: what follows Ray's `Error:`; if that holds a traceback, the exception's own message."""
    _, _, error = message.partition("Error:\n")
    lines = [line.strip() for line in (error.strip() or message).splitlines() if line.strip()]
    if not lines:
        return ""
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unavailable|Failed|Exceeded|Exit)\b.*:", line)]
    last = raised[-1] if raised else lines[0]
    return re.sub(r"^(?:[a-z_]\w*\.)+(?=[A-Z])", "", last)


def waits_for(application: ApplicationStatusOverview) -> list[str]:
    """Deployments that lack replicas, such as `Detector (0 of 1 replicas)`, with the reason if Ray cannot place one."""
    found = []
    for name, deployment in application.deployments.items():
        states: dict[Any, int] = dict(deployment.replica_states)
        running, wanted = states.get("RUNNING", 0), sum(states.values())
        if running < wanted:
            found.append(f"{name} ({running} of {wanted} replicas{_unplaced(deployment.message)})")
    return found


def _unplaced(message: str) -> str:
    needs = re.search(r"Resources required for each replica: (\{.*?\}), total resources available: (\{.*?\})", message)
    if needs is None or _fits(json.loads(needs[1]), json.loads(needs[2])):
        return ""  # Ray prints the same for replicas that are just slow to start
    remedy = "lower num_cpus, num_gpus, memory or the number of replicas under `deployments`, or add a node"
    return f"; a replica needs {needs[1]}, {needs[2]} is free: {remedy}"


def _fits(needed: dict[str, float], free: dict[str, float]) -> bool:
    return all(free.get(name, 0.0) >= count for name, count in needed.items())


def address_of(document: ServeDeploySchema, prefix: str) -> str:
    """The URL, with a slash at its end, at which this machine reaches an application of a configuration."""
    host = document.http_options.host or "127.0.0.1"
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{here}:{document.http_options.port}{quote(prefix.rstrip('/'))}/"


def _is_ready(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}ready", timeout=10).ok
    return False


@contextlib.contextmanager
def _one_line_if_it_fails(what: str) -> Iterator[None]:
    """Within: any exception of Ray, which raises many kinds, becomes one line with the reason and where to look."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        free_mb = shutil.disk_usage(_ray_folder()).free / 1e6
        space = f" Only {free_mb:.0f} MB are free in {_ray_folder()}, where Ray writes." if free_mb < LITTLE_SPACE_MB else ""
        raise ConfigurationError(
            f"{what} does not start: {reason}.{space} On a busy machine it may start at the next try. "
            f"`make serve ARGS=-v` shows Ray's log."
        ) from error


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Within: a child process compiles the loops, unless they are cached. The replicas need them, and start seconds later."""
    quiet = subprocess.DEVNULL  # where it cannot compile, the replicas do, and log it
    child = subprocess.Popen([sys.executable, "-m", "pipeline.precompile"], stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with its own child
        child.wait()


def _ray_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp")


def _log_folder() -> Path:
    return _ray_folder() / "ray/session_latest/logs/serve"


def _interrupt_on_signals() -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
