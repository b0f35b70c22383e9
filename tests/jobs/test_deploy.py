"""A model into a running service: what is changed in the file, what is checked before, what is taken back."""

import errno
import re
import socket
import sys
from types import SimpleNamespace

import pytest
import requests
import yaml

import jobs.deploy
import jobs.serve_api
from jobs.command_line import CommandFault
from jobs.deploy import address_of, changed_labels, main, with_model
from loadtest.service.local_service import SHIPPED_CONFIG
from pipeline.model.zoo import embedded_models
from tests.support.stub_service import UNREADABLE, stub_service

(MODEL,) = embedded_models()
CONFIG = SHIPPED_CONFIG.read_text(encoding="utf-8")


def test_only_the_model_changes():
    """Comments and all other lines stay; a path that YAML would misread is quoted."""
    after = with_model(CONFIG, "rtmdet-ins", "/models/no: #7.safetensors")
    changed = [(old, new) for old, new in zip(CONFIG.splitlines(), after.splitlines(), strict=True) if old != new]
    assert len(changed) == 1
    assert yaml.safe_load(after)["applications"][0]["args"]["model"]["name"] == "/models/no: #7.safetensors"
    assert changed[0][0].rpartition("#")[2] == changed[0][1].rpartition("#")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONFIG, "no args.model.name of an application other; its applications: rtmdet-ins"),
        ("applications: []", "its applications: none"),
        ("x", "its applications: none"),
        (CONFIG.replace("name: rtmdet-ins\n", "name: other\n").replace("max_image_mb:", "max_image:"), "not valid: .*max_image"),
    ],
)
def test_configurations_without_a_place_for_it(text, said):
    with pytest.raises(CommandFault, match=said):
        with_model(text, "other", "/m.safetensors")


def test_a_name_is_no_file(capsys):
    assert main([MODEL, "--config", str(SHIPPED_CONFIG)]) == 1
    assert f"there is no file {MODEL}. (A model by its name: `model.name` in" in capsys.readouterr().err


def test_addresses_and_labels():
    assert address_of(CONFIG, "rtmdet-ins") == "http://127.0.0.1:8000"
    for host, told in (("0.0.0.0", "127.0.0.1"), ("'::1'", "[::1]")):
        text = f"http_options: {{host: {host}, port: 9}}\napplications: [{{name: a, route_prefix: /b, import_path: c:d}}]"
        assert address_of(text, "a") == f"http://{told}:9/b"
    assert changed_labels(["a", "b"], ["b", "c", "d"]) == "new labels: c, d; gone labels: a"
    assert changed_labels(["a"], ["a"]) == "The labels stay"


@pytest.fixture
def deploy(tmp_path, monkeypatch):
    """Runs the command against a stub; gives its status, the model names applied in order, and the one in the file at the end."""

    def run(answer=None, model=MODEL, fails="", dashboard_gone=False, more=()):
        applied, config = [], tmp_path / "serve_config.yaml"
        config.write_text(CONFIG)

        def wait_until_running(application, timeout_s):
            assert (application, timeout_s) == ("rtmdet-ins", 300)
            if fails:
                raise fails if isinstance(fails, BaseException) else CommandFault(fails)

        def apply(text):
            if applied and dashboard_gone:
                raise CommandFault("the dashboard does not answer")
            applied.append(name_in(text))

        api = SimpleNamespace(apply=apply, wait_until_running=wait_until_running)
        monkeypatch.setitem(sys.modules, "jobs.serve_api", SimpleNamespace(ServeApi=lambda _address: api))
        with stub_service(model=model, answer=answer) as stub:
            status = main([str(embedded_models()[MODEL]), "--config", str(config), "--url", stub.url, *more])
        return status, applied, name_in(config.read_text())

    return run


def name_in(text):
    return yaml.safe_load(text)["applications"][0]["args"]["model"]["name"]


def test_a_model_is_put_in(deploy, capsys):
    path = str(embedded_models()[MODEL].resolve())
    assert deploy() == (0, [path], path)
    said = capsys.readouterr().out
    assert f"{MODEL}, 640 px, labels person" in said
    assert f"runs {MODEL}; it found 1 object(s)" in said


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"fails": "the new replicas do not start: out of memory"}, "out of memory. "),
        ({"fails": KeyboardInterrupt()}, "interrupted. "),
        ({"fails": RuntimeError("of the dashboard")}, "of the dashboard. "),
        ({"model": "another"}, f"runs another instead of {MODEL}. "),
        ({"answer": UNREADABLE}, "grace_hopper.jpg: no. "),
    ],
    ids=["does not start", "Ctrl-C", "the dashboard fails", "the old one answers", "does not score"],
)
def test_what_fails_is_taken_back(deploy, capsys, how, said):
    """The file is as before, and applied again."""
    assert deploy(**how) == (1, [str(embedded_models()[MODEL].resolve()), MODEL], MODEL)
    assert re.search(
        f"{re.escape(said)}.*serve_config.yaml is as before; the old model is applied again\n", capsys.readouterr().err
    )


def test_a_dashboard_that_goes_away(deploy, capsys):
    """The file is put back all the same, and both outcomes are reported."""
    status, applied, in_file = deploy(fails="no answer", dashboard_gone=True)
    assert (status, applied, in_file) == (1, [str(embedded_models()[MODEL].resolve())], MODEL)
    said = capsys.readouterr().err
    assert re.search(
        r"no answer\. .*serve_config\.yaml is as before; the new model may run \(the dashboard does not answer\): give", said
    )


def test_a_file_that_cannot_be_put_back(deploy, capsys, monkeypatch):
    """As on a full disk: the cluster gets the old model."""
    real, writes = jobs.deploy.write_atomically, []

    def write(path, text):
        writes.append(text)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(jobs.deploy, "write_atomically", write)
    path = str(embedded_models()[MODEL].resolve())
    assert deploy(fails="no room") == (1, [path, MODEL], path)
    assert "still names the new model (" in (said := capsys.readouterr().err)
    assert "put the old one back; the old model is applied again" in said


@pytest.fixture
def serve_api(monkeypatch):
    """ServeApi with a stand-in for Ray's client, whose `get_serve_details` gives these answers in turn, then the last."""

    def make(*answers):
        left = list(answers)

        def get_serve_details():
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return {"applications": {"app": answer}}

        client = SimpleNamespace(get_serve_details=get_serve_details, deploy_applications=lambda _: raised(answers[0]))
        monkeypatch.setattr(jobs.serve_api, "Dashboard", lambda _: client)
        monkeypatch.setattr(jobs.serve_api, "POLL_S", 0.0)
        return jobs.serve_api.ServeApi("http://head:8265")

    return make


def raised(error):
    raise error


GONE = requests.ConnectionError("Connection refused")


def test_a_dashboard_that_is_started_again(serve_api):
    """It is asked again until the time is over; then that is what is reported."""
    serve_api(GONE, RuntimeError("status code 500"), {"status": "RUNNING"}).wait_until_running("app", 60)
    with pytest.raises(
        CommandFault, match=r"did not run within 0\.1 s .*dashboard at http://head:8265 does not answer \(ConnectionError"
    ):
        serve_api(GONE).wait_until_running("app", 0.1)


def test_a_configuration_that_does_not_arrive(serve_api):
    with pytest.raises(
        CommandFault, match=r"^Ray's dashboard at http://head:8265 does not answer \(ConnectionError\); `serve status`"
    ):
        serve_api(GONE).apply("applications: []")
    with pytest.raises(CommandFault, match=r"^Ray Serve refuses the configuration: bad$"):
        serve_api(RuntimeError("Traceback\n\nbad")).apply("applications: []")


def test_a_dashboard_that_hangs(monkeypatch):
    """Each request has a time limit: the first, which asks for the version, and those after it."""
    monkeypatch.setattr(jobs.serve_api, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CommandFault, match=rf"^--address {address}: .*timed out"):
            jobs.serve_api.ServeApi(address)
        monkeypatch.setattr(jobs.serve_api.Dashboard, "_check_connection_and_version_with_url", lambda *_, **__: None)
        api = jobs.serve_api.ServeApi(address)
        with pytest.raises(CommandFault, match=r"does not answer \(ReadTimeout\)"):
            api.apply("applications: []")
        with pytest.raises(CommandFault, match=r"did not run within 0\.1 s .*does not answer \(ReadTimeout\)"):
            api.wait_until_running("app", 0.1)


def test_a_file_that_is_not_a_model(tmp_path, capsys):
    """Refused before anything is changed or asked."""
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert main([str(tmp_path / "x.safetensors")]) == 1
    assert "x.safetensors" in capsys.readouterr().err


def test_the_same_file_again(tmp_path, capsys):
    """Ray Serve would replace nothing."""
    config = tmp_path / "again.yaml"
    config.write_text(with_model(CONFIG, "rtmdet-ins", str(embedded_models()[MODEL].resolve())))
    assert main([str(embedded_models()[MODEL]), "--config", str(config)]) == 1
    assert "names this file already" in capsys.readouterr().err


def test_nothing_answers(tmp_path, capsys):
    """No dashboard at --address: told in a line, the file stays."""
    config = tmp_path / "serve_config.yaml"
    config.write_text(CONFIG)
    assert main([str(embedded_models()[MODEL]), "--config", str(config), "--address", "http://127.0.0.1:9"]) == 1
    assert "--address http://127.0.0.1:9: " in capsys.readouterr().err
    assert config.read_text() == CONFIG


@pytest.mark.parametrize("content", [b"applications: [a", b"\xff\xfe"])
def test_a_configuration_that_is_not_yaml(tmp_path, capsys, content):
    (tmp_path / "serve_config.yaml").write_bytes(content)
    assert main([str(embedded_models()[MODEL]), "--config", str(tmp_path / "serve_config.yaml")]) == 1
    assert "serve_config.yaml: not YAML in UTF-8 (" in capsys.readouterr().err
