"""A model into a running service: what is changed in the file, what is checked before, what is taken back."""

import sys
from types import SimpleNamespace

import pytest
import yaml

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

    def run(answer=None, model=MODEL, fails="", more=()):
        applied, config = [], tmp_path / "serve_config.yaml"
        config.write_text(CONFIG)

        def wait_until_running(application, timeout_s):
            assert (application, timeout_s) == ("rtmdet-ins", 300)
            if fails:
                raise fails if isinstance(fails, BaseException) else CommandFault(fails)

        api = SimpleNamespace(apply=lambda text: applied.append(name_in(text)), wait_until_running=wait_until_running)
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
        ({"fails": "the new replicas do not start: out of memory"}, "out of memory. Taken back"),
        ({"fails": KeyboardInterrupt()}, "interrupted. Taken back"),
        ({"model": "another"}, f"runs another instead of {MODEL}. Taken back"),
        ({"answer": UNREADABLE}, "grace_hopper.jpg: no. Taken back"),
    ],
    ids=["does not start", "Ctrl-C", "the old one answers", "does not score"],
)
def test_what_fails_is_taken_back(deploy, capsys, how, said):
    """The file is as before, and applied again."""
    assert deploy(**how) == (1, [str(embedded_models()[MODEL].resolve()), MODEL], MODEL)
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_model(tmp_path, capsys):
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
def test_a_configuration_that_is_no_yaml(tmp_path, capsys, content):
    (tmp_path / "serve_config.yaml").write_bytes(content)
    assert main([str(embedded_models()[MODEL]), "--config", str(tmp_path / "serve_config.yaml")]) == 1
    assert "serve_config.yaml: not YAML in UTF-8 (" in capsys.readouterr().err
