"""What `make serve` says: progress, faults with their remedy. That it starts and stops, tests/e2e/test_start.py shows."""

import re
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from ray.exceptions import GetTimeoutError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from pipeline.errors import ConfigurationError
from serve_app import local_run, start
from serve_app.local_run import LocalRun, failure_of, reason_of, waits_for


def deployment(message="", **states):
    replicas = {ReplicaState(state): count for state, count in states.items()}
    return DeploymentStatusOverview(DeploymentStatus.UPDATING, DeploymentStatusTrigger.CONFIG_UPDATE_STARTED, replicas, message)


def application(**deployments):
    return ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 0.0, deployments)


def test_names_the_deployments_that_are_waited_for():
    """Those that have all their replicas are left out."""
    waiting = application(
        Ingress=deployment(RUNNING=2), Detector=deployment(STARTING=1), ImageLoader=deployment(RUNNING=1, STARTING=1)
    )
    assert waits_for(waiting) == ["Detector (0 of 1 replicas)", "ImageLoader (1 of 2 replicas)"]


RAYS_WORDS = (
    "Deployment 'Detector' in application 'rtmdet-ins' has 1 replicas that have taken more than 30s to be scheduled. This may be "
    'due to waiting for the cluster to auto-scale. Resources required for each replica: {"CPU": %s}, total resources '
    'available: {"CPU": 1.2}. Use `ray status` for more details.'
)


def test_says_why_ray_cannot_place_a_replica():
    """With what it needs, what is free, and the setting to change."""
    (line,) = waits_for(application(Detector=deployment(RAYS_WORDS % 100.0, STARTING=1)))
    assert '{"CPU": 100.0}, {"CPU": 1.2} is free: lower num_cpus, num_gpus, memory or' in line


def test_a_replica_that_only_starts_slowly_is_not_blamed_on_resources():
    """Ray says the same of it."""
    assert waits_for(application(Detector=deployment(RAYS_WORDS % 1.2, STARTING=1))) == ["Detector (0 of 1 replicas)"]


def test_the_deployment_that_failed_says_why():
    """Its own words, before Ray's `Failed to update the deployments`."""
    failed = deployment("Error:\npipeline.errors.EngineUnavailable: this PyTorch is a CPU build", STARTING=1)
    failed.status = DeploymentStatus.DEPLOY_FAILED
    ill = application(Ingress=deployment("", RUNNING=1), Detector=failed)
    ill.message = "Failed to update the deployments ['Detector']."
    assert failure_of(ill) == "EngineUnavailable: this PyTorch is a CPU build"
    failed.message = ""
    assert failure_of(ill) == "Failed to update the deployments ['Detector']."


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param("The deployment is new.", "The deployment is new.", id="a sentence"),
        pytest.param(
            """\
            The deployment failed to start 3 times in a row. See controller logs for details. Error:
            ray::ServeReplica:rtmdet-ins:Detector.initialize_and_get_metadata() (pid=1, ip=127.0.0.1)
              File "/ray/serve/_private/replica.py", line 1, in initialize
                raise RuntimeError(traceback.format_exc()) from None
            RuntimeError: Traceback (most recent call last):
              File "/pipeline/model/zoo.py", line 1, in locate
            pipeline.errors.CheckpointError: there is no file x.pth; put it there""",
            "CheckpointError: there is no file x.pth; put it there",
            id="a traceback",
        ),
        pytest.param(
            """\
            The deployment failed to start 3 times in a row. See controller logs for details. Error:
            Replica scheduling failed. Failed to create an actor for replica x.""",
            "Replica scheduling failed. Failed to create an actor for replica x.",
            id="no exception",
        ),
    ],
)
def test_reason_is_the_exceptions_own_words(message, reason):
    assert reason_of(textwrap.dedent(message)) == reason


@pytest.mark.parametrize("auth", [{}, {"keys_env": ["KEY"]}], ids=["open", "keys"])
def test_the_curl_that_it_prints_has_a_key_where_one_is_needed(tmp_path, capsys, monkeypatch, auth):
    """Without the header such a service answers 401."""
    document = yaml.safe_load((Path(start.__file__).parents[1] / "serve_config.yaml").read_text())
    document["applications"][0]["args"]["ingress"]["auth"] = auth
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(local_run, "check_ports", lambda _http: None)
    run = LocalRun(tmp_path / "serve_config.yaml", verbose=False)
    run._check()
    run._say_ready("http://127.0.0.1:8000/")
    assert ("-H 'Authorization: Bearer <key>' -F image=@" in capsys.readouterr().out) == bool(auth)


def test_a_failed_update_and_the_way_back_are_reported(monkeypatch, tmp_path, capsys):
    """Once each; DEPLOYING in between is not the end of it."""
    told = [application() for _ in range(5)]
    for each, status in zip(told, ("RUNNING", "DEPLOY_FAILED", "DEPLOY_FAILED", "DEPLOYING", "RUNNING"), strict=True):
        each.status, each.message = ApplicationStatus(status), "No GPU." if status == "DEPLOY_FAILED" else ""
    monkeypatch.setattr(local_run.time, "sleep", lambda _s: None)
    monkeypatch.setattr(local_run.serve, "status", lambda: SimpleNamespace(applications={"a": told.pop(0)}))
    with pytest.raises(IndexError):
        LocalRun(tmp_path, verbose=False)._watch()
    lines = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["a is DEPLOY_FAILED. No GPU.", "a is RUNNING."]


def test_ctrl_c_after_a_failed_start(monkeypatch, tmp_path):
    """While Ray is stopped: the reason is still told, without a traceback."""
    fails = {"start": ConfigurationError("the application does not start"), "shutdown": KeyboardInterrupt()}

    def fail(name):
        raise fails[name]

    run = LocalRun(tmp_path / "serve_config.yaml", verbose=False)
    monkeypatch.setattr(run, "_start", lambda: fail("start"))
    monkeypatch.setattr(local_run.ray, "shutdown", lambda: fail("shutdown"))
    with pytest.raises(ConfigurationError, match="does not start"):
        run._run(None)


@pytest.mark.parametrize(("part", "called"), [("Ray", (local_run.ray, "init")), ("Ray Serve", (local_run.serve_run, "main"))])
@pytest.mark.parametrize("free_mb", [40, 40_000])
@pytest.mark.parametrize("error", [Exception, SystemExit, GetTimeoutError])
def test_a_start_that_fails_is_one_line(monkeypatch, tmp_path, part, called, free_mb, error):
    """Whatever Ray raises; it says that the disk is full."""

    def fail(*_, **__):
        raise error("The node timed out.\nThis could happen because\n")

    monkeypatch.setattr(local_run.ray, "init", lambda **_: None)
    monkeypatch.setattr(*called, fail)
    monkeypatch.setattr(local_run.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mb * 1e6))
    monkeypatch.setattr(local_run, "_interrupt_on_signals", lambda: None)
    with pytest.raises(ConfigurationError) as raised:
        LocalRun(tmp_path / "serve_config.yaml", verbose=False)._run(None)
    space = " Only 40 MB are free in /tmp, where Ray writes." if free_mb == 40 else ""
    assert raised.value.message.startswith(f"{part} does not start: The node timed out.{space} On a busy machine")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_child_compiles_until_the_service_is_ready(tmp_path, monkeypatch, error):
    """It ends, and so does its own child, when the service is ready, or was interrupted before."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def waits(_self, _document):
        nonlocal compilers
        while len(compilers := psutil.Process().children(recursive=True)) < 2:  # the second when the first finds an empty cache
            time.sleep(0.1)
        if error:
            raise error

    compilers: list[psutil.Process] = []
    monkeypatch.setattr(LocalRun, "_start", lambda _self: None)
    monkeypatch.setattr(LocalRun, "_wait_until_ready", waits)
    monkeypatch.setattr(LocalRun, "_watch", lambda _self: None)
    monkeypatch.setattr(LocalRun, "_stop", lambda _self: None)
    monkeypatch.setattr(local_run.ray, "shutdown", lambda: None)
    LocalRun(tmp_path, verbose=False)._run(None)
    assert [one.cmdline()[1:] for one in compilers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'A=1\nB="x\nC=1\n', r"ray\.env, line 2: No closing quotation"), (b"A=\xff", r"ray\.env cannot be read as UTF-8")],
)
def test_a_fault_of_ray_env_is_one_line(tmp_path, capsys, content, said):
    """It names the file, and the line."""
    (tmp_path / "ray.env").write_bytes(content)
    assert start.main([str(tmp_path / "serve_config.yaml")]) == 1
    assert re.fullmatch(f".*serve_config.yaml: {said}.*\n", capsys.readouterr().err)


def test_a_fault_of_the_file_is_one_line(tmp_path, capsys):
    """Before anything starts, with status 1."""
    path = tmp_path / "serve_config.yaml"
    path.write_text("applications: []\nspeed: 3\n")
    assert start.main([str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == f"Checking {path} …\n"
    assert told.err.startswith(f"{path}: top level: unknown key(s) speed; known: ")
    assert told.err.count("\n") == 1
