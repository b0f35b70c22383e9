"""serve_config.yaml: the shipped file is good, and mistakes Ray Serve would swallow are errors."""

import os
import socket
import sys
from pathlib import Path

import certifi
import pytest
import yaml

from pipeline.errors import ConfigurationError
from serve_app.config_file import HAPROXY_PORTS, absent_files, check_config, check_ports, main

SHIPPED = Path(__file__).parents[2] / "serve_config.yaml"


@pytest.fixture
def document():
    return yaml.safe_load(SHIPPED.read_text())


def write(tmp_path, document):
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_shipped_file_is_good():
    """The file in the repository passes its own check and listens on loopback."""
    (settings,) = check_config(SHIPPED)
    assert settings.model.name == "rtmdet-ins_nano_person"


APP = ["applications", 0]
ARGS = [*APP, "args"]
DETECTOR = [*APP, "deployments", 2]


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        pytest.param(
            [], "proxy_locaton", "HeadOnly", r"^top level: unknown key\(s\) proxy_locaton; known: .*proxy_location", id="top"
        ),
        pytest.param(["http_options"], "port", -1, r"^http_options\.port: 1 to 65535, got -1$", id="no port"),
        pytest.param(["http_options"], "prot", 80, r"^http_options: unknown key\(s\) prot; known: .*port", id="http option"),
        pytest.param(
            ["http_options"], "root_url", "/a", r"^http_options: unknown key\(s\) root_url", id="option only Python takes"
        ),
        pytest.param([], "grpc_options", {"prot": 9}, r"^grpc_options: unknown key\(s\) prot", id="grpc option"),
        pytest.param(["logging_config"], "encodin", "JSON", r"^logging_config: unknown key\(s\) encodin", id="logging option"),
        pytest.param(
            APP, "rout_prefix", "/", r"^applications\[rtmdet-ins\]: unknown key\(s\) rout_prefix", id="application option"
        ),
        pytest.param(APP, "runtime_envv", {}, r"unknown key\(s\) runtime_envv; known: .*runtime_env", id="runtime environment"),
        pytest.param(
            ARGS, "image_loader", {"max_megapixels": 500}, r"args.image_loader.max_megapixels: .*equal to 178", id="Pillow"
        ),
        pytest.param(DETECTOR, "num_replica", 2, r"Detector.*unknown key\(s\) num_replica", id="deployment option"),
        pytest.param([*DETECTOR, "ray_actor_options"], "gpus", 1, r"ray_actor_options: unknown key\(s\) gpus", id="actor option"),
        pytest.param(
            [*DETECTOR, "logging_config"], "log_leve", 1, r"deployments\[Detector\].logging_config: .* log_leve", id="log"
        ),
        pytest.param(
            DETECTOR, "autoscaling_config", {"min_replica": 1}, r"autoscaling_config: .* min_replica;", id="autoscaling"
        ),
        pytest.param(
            DETECTOR,
            "autoscaling_config",
            {"policy": {"policy_functio": "a:b"}},
            r"deployments\[Detector\].autoscaling_config.policy: unknown key\(s\) policy_functio",
            id="autoscaling policy",
        ),
        pytest.param(
            DETECTOR,
            "autoscaling_config",
            {"min_replicas": 3, "max_replicas": 2},
            r"deployments\[Detector\].autoscaling_config: .*max_replicas \(2\)",
            id="autoscaling backwards",
        ),
        pytest.param(
            DETECTOR,
            "autoscaling_config",
            {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 48},
            "2 replicas are never reached.*max_in_flight",
            id="autoscaling without effect",
        ),
        pytest.param(
            DETECTOR,
            "autoscaling_config",
            {"policy": {"policy_function": "deployments.ray_serve.scaling:by_nothing"}},
            "a function that it names cannot be imported: .*by_nothing",
            id="no such autoscaling policy",
        ),
        pytest.param(
            DETECTOR,
            "num_replicas",
            0,
            r"^applications\[rtmdet-ins\].deployments\[Detector\].num_replicas: Input",
            id="no replica",
        ),
        pytest.param(
            DETECTOR, "max_replicas_per_node", 0, r"deployments\[Detector\]: Invalid max_replicas_per_node 0", id="no room"
        ),
        pytest.param(
            [*DETECTOR, "ray_actor_options"],
            "resources",
            {"GPU": 1},
            r"\[Detector\]: Use the 'num_cpus' and 'num_gpus'",
            id="GPU",
        ),
        pytest.param(
            [*DETECTOR, "ray_actor_options"], "num_gpus", 1.5, "num_gpus: 1.5; above 1 .* whole GPUs", id="GPU and a half"
        ),
        pytest.param(ARGS, "detector", None, r"^args\.detector: Input should be a valid mapping$", id="section without settings"),
        pytest.param(
            [*ARGS, "ingress"], "cors_origins", "https://a.example", r"cors_origins: Input should be a valid list$", id="no list"
        ),
        pytest.param([*ARGS, "image_loader"], "fetch", {"allowed_ports": 9000}, "Input should be a valid list$", id="no tuple"),
        pytest.param(
            DETECTOR, "request_router_config", {"initial_backoff": 1}, r"request_router_config: .* initial_backoff;", id="router"
        ),
        pytest.param(DETECTOR, "name", "Detecter", "no such deployment; known: Ingress", id="deployment name"),
        pytest.param(DETECTOR, "name", "ImageLoader", "more than one entry for ImageLoader", id="deployment twice"),
        pytest.param(
            [*APP, "deployments"], 2, "Detector", r"deployments\[2\]: expected a mapping, got 'Detector'", id="no mapping"
        ),
        pytest.param(
            DETECTOR, "max_ongoing_requests", 9, "cannot fill batches of 8; it must be at least 16", id="too little concurrency"
        ),
        pytest.param(
            [*ARGS, "detector"], "max_bach", 8, r"args\.detector: unknown key\(s\) max_bach; known: .*max_batch", id="our setting"
        ),
        pytest.param([*ARGS, "detector"], "max_batch", 0, r"args\.detector\.max_batch", id="value out of range"),
        pytest.param([*ARGS, "detector"], "device", "gpu", r"args\.detector\.device: .*cuda", id="no such device"),
        pytest.param(
            ARGS, "detector", {"engine": "openvino", "device": "cuda:1"}, "openvino runs on CPUs", id="engine on another's device"
        ),
        pytest.param(APP, "route_prefix", "scoring", "route_prefix: 'scoring' is not a path", id="prefix without slash"),
        pytest.param(APP, "route_prefix", "/scoring/", "without / at its end", id="prefix with two"),
        pytest.param([*ARGS, "ingress"], "max_images_in_flight", 5, "max_images_in_flight", id="limits that contradict"),
        pytest.param(
            [*ARGS, "ingress"], "timeout_s", 90, r"request_timeout_s \(60\) must be above .*timeout_s \(90\)", id="late 408"
        ),
        pytest.param(
            ["http_options"], "request_timeout_s", 30, "request_timeout_s .* must be above", id="408 at the same moment"
        ),
        pytest.param(
            [*ARGS, "image_loader"],
            "fetch",
            {"allowed_networks": ["10.2.0.0/16", "10.0.0.1/8"]},
            r"args\.image_loader\.fetch\.allowed_networks\[1\]: 10\.0\.0\.1/8 has host bits set; expected a network",
            id="address for a network",
        ),
        pytest.param(
            [*ARGS, "image_loader"], "fetch", {"allowed_networks": ["10.0.0.0/33"]}, r"10\.0\.0\.0/33", id="no such mask"
        ),
        pytest.param([*ARGS, "image_loader"], "fetch", {"allowed_networks": ["intranet"]}, "'intranet'", id="name for a network"),
        pytest.param(
            [*ARGS, "image_loader"],
            "fetch",
            {"allowed_hosts": ["https://a.example/"]},
            r"hosts\[0\]: 'https://a.example/' is not a host name",
            id="URL for a host",
        ),
        pytest.param(
            [*ARGS, "image_loader"], "fetch", {"allowed_hosts": ["*.a.example"]}, "not a host name", id="star for a host"
        ),
        pytest.param([*ARGS, "image_loader"], "fetch", {"allowed_ports": [0]}, r"allowed_ports\[0\]", id="no such port"),
        pytest.param([*ARGS, "ingress"], "max_body_mb", float("inf"), r"args\.ingress\.max_body_mb: .*finite", id="infinite"),
        pytest.param([*ARGS, "ingress"], "max_urls_in_flight", 64, "slow URLs would block", id="URLs could take all loaders"),
        pytest.param([*ARGS, "model"], "name", "rtmdet-ins_nano_persn", "neither a known model", id="model name"),
        pytest.param(
            [*APP, "deployments", 0],
            "max_ongoing_requests",
            256,
            "must be above .*528: max_images_in_flight",
            id="admission by Ray",
        ),
        pytest.param(
            [*APP, "deployments", 0],
            "graceful_shutdown_timeout_s",
            30,
            r"Ingress\].graceful_shutdown_timeout_s \(30\) must be above",
            id="an update that cuts requests",
        ),
        pytest.param(
            [],
            "tracing_config",
            {"enabled": True, "exporter_import_path": "deployments.telemetry.tracing:otlp"},
            r"tracing_config\.exporter_import_path: .*:otlp cannot be imported",
            id="no such exporter",
        ),
        pytest.param(DETECTOR, "num_replicas", "auto", "100 replicas are never reached", id="autoscaling by its other name"),
        pytest.param(
            [*DETECTOR, "ray_actor_options"],
            "memory",
            1500,
            r"memory: 1500 bytes are less than a replica takes",
            id="MB for bytes",
        ),
        pytest.param(["http_options"], "host", "0.0.0.0", "no keys are set", id="open to the world"),
        pytest.param(APP, "import_path", "serve_app.ap:build_app", "nothing to check: .*serve_app.app:build_app", id="not ours"),
    ],
)
def test_mistakes_are_named(tmp_path, document, place, key, value, message):
    """Each mistake is an error that names its place, and what is known or wanted there."""
    section = document
    for step in place:
        section = section[step]
    section[key] = value
    if key == "autoscaling_config":
        del section["num_replicas"]
    with pytest.raises(ConfigurationError, match=message):
        check_config(write(tmp_path, document))


def test_ray_would_listen_on_all_addresses(tmp_path, document):
    """A file that names no host is served on 0.0.0.0 by `serve run`, so it wants keys."""
    del document["http_options"]["host"]
    with pytest.raises(ConfigurationError, match=r"http_options\.host is 0\.0\.0\.0"):
        check_config(write(tmp_path, document))


@pytest.mark.parametrize("entry", [{"name": "Detector"}, None], ids=["entry without it", "no entry"])
def test_default_concurrency_counts(tmp_path, document, entry):
    """Where max_ongoing_requests is not given, the decorator's default must hold two batches."""
    app = document["applications"][0]
    app["deployments"] = [entry] if entry else []
    app["args"]["detector"]["max_batch"] = 32
    assert check_config(write(tmp_path, document))
    app["args"]["detector"]["max_batch"] = 64
    with pytest.raises(ConfigurationError, match=r"deployments\[Detector\]: max_ongoing_requests 64 cannot fill batches of 64"):
        check_config(write(tmp_path, document))


def test_concurrency_of_all_stages_together(tmp_path):
    """With layout: together the Ingress holds the batches, so its max_ongoing_requests counts."""
    document = yaml.safe_load(SHIPPED.with_name("serve_config.together.yaml").read_text())
    document["applications"][0]["deployments"][0]["max_ongoing_requests"] = 15
    with pytest.raises(ConfigurationError, match=r"deployments\[Ingress\]: max_ongoing_requests 15 cannot fill batches of 8"):
        check_config(write(tmp_path, document))


def test_both_spellings_of_the_import_path(tmp_path, document):
    """Ray takes `serve_app.app.build_app` too, so such an application is checked as well."""
    document["applications"][0]["import_path"] = "serve_app.app.build_app"
    assert check_config(write(tmp_path, document))
    document["applications"][0]["args"]["detector"]["max_batch"] = 0
    with pytest.raises(ConfigurationError, match="max_batch"):
        check_config(write(tmp_path, document))


def test_haproxy_waits_longer_than_the_service(tmp_path, document, monkeypatch):
    """In the environment of ray.env its limit is above ours; where somebody raised ours alone, both are named."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", "35")
    assert check_config(write(tmp_path, document))
    document["applications"][0]["args"]["ingress"]["timeout_s"] = 40
    with pytest.raises(
        ConfigurationError, match=r"RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S \(35, see ray.env\) must be above .*timeout_s \(40\)"
    ):
        check_config(write(tmp_path, document))


def test_an_ingress_that_drains_needs_time_for_both(tmp_path, document, monkeypatch):
    """With HAProxy it takes requests for a while, then finishes those it has. Without an entry it has the decorator's time."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5")
    with pytest.raises(ConfigurationError, match=r"\(35\) must be above 35, args\.ingress\.timeout_s \(30\) plus .*_S \(5\)"):
        check_config(write(tmp_path, document))
    del document["applications"][0]["deployments"][0]["graceful_shutdown_timeout_s"]
    monkeypatch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    assert check_config(write(tmp_path, document))


def test_a_callback_that_has_moved(tmp_path, document, monkeypatch):
    """Of a ray.env of an older version."""
    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_app.proxy:middlewares")
    with pytest.raises(
        ConfigurationError, match=r"CALLBACK_IMPORT_PATH \(see ray\.env\): serve_app\.proxy:middlewares cannot be"
    ):
        check_config(write(tmp_path, document))


def test_keys_of_the_environment_are_mentioned(tmp_path, document, monkeypatch, capsys):
    """Where they are not set here, they must be where the service runs."""
    document["applications"][0]["args"]["ingress"]["auth"] = {"keys_env": ["NOT_SET_HERE"]}
    monkeypatch.setattr(sys, "argv", ["config_file", str(write(tmp_path, document))])
    assert main() == 0
    assert "NOT_SET_HERE is not set here" in capsys.readouterr().err


def test_ray_without_a_deadline(tmp_path, document):
    """No request_timeout_s leaves the deadline to us."""
    del document["http_options"]["request_timeout_s"]
    assert check_config(write(tmp_path, document))


def test_file_for_gpus_is_good():
    """The other shipped files pass too; this one listens to the network, with keys."""
    (settings,) = check_config(SHIPPED.with_name("serve_config.gpu.yaml"))
    assert settings.ingress.auth.keys_file
    assert check_config(SHIPPED.with_name("serve_config.together.yaml"))


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.gpu.yaml", "deploy/rayservice.yaml"])
def test_a_silent_ingress_is_given_up_before_those_that_wait_for_it(name):
    """Three missing answers to Ray's health checks. A replica that returns a result to a silent Ingress does not answer either."""
    document = next(iter(yaml.safe_load_all((SHIPPED.parent / name).read_text())))
    if "spec" in document:
        document = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = document["applications"]
    checks = {
        each["name"]: (each["health_check_period_s"], each["health_check_timeout_s"]) for each in application["deployments"]
    }
    period_s, timeout_s = checks.pop("Ingress")
    given_up_s = period_s + 3 * timeout_s
    assert given_up_s <= 5
    assert len(checks) == 3
    for period_s, timeout_s in checks.values():
        assert given_up_s + 2 < 3 * timeout_s
        assert period_s + 3 * timeout_s <= 10


@pytest.mark.parametrize("auth", [{"keys_env": ["KEY"]}, {"keys_file": "/run/keys"}, {"allow_anonymous": True}])
def test_open_address_with_keys_or_leave(tmp_path, document, auth):
    """Beyond loopback it wants keys, or to be told that none are wanted."""
    document["http_options"]["host"] = "0.0.0.0"
    document["applications"][0]["args"]["ingress"]["auth"] = auth
    assert check_config(write(tmp_path, document))


def test_a_key_that_stands_twice(tmp_path):
    """YAML would take the last, in silence."""
    text = SHIPPED.read_text(encoding="utf-8").replace("max_batch: 8 ", "max_batch: 8\n        max_batch: 16 ")
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"line \d+: max_batch is given twice"):
        check_config(path)


def test_manifest_of_kuberay(tmp_path):
    """Its serveConfigV2 is checked, with the manifest's other documents around it."""
    shipped = SHIPPED.parent / "deploy/rayservice.yaml"
    assert check_config(shipped) == check_config(SHIPPED.with_name("serve_config.gpu.yaml"))
    path = tmp_path / "rayservice.yaml"
    for wrong, message in (
        (("max_batch:", "max_bach:"), "args.detector: unknown key.* max_bach"),
        (("serveConfigV2: |", "serveConfigV2:"), "spec.serveConfigV2: expected .* as text"),
        (("kind: RayService", "kind: RayJob"), "holds . YAML documents; expected one"),
    ):
        path.write_text(shipped.read_text().replace(*wrong))
        with pytest.raises(ConfigurationError, match=message):
            check_config(path)


def test_ports_that_cannot_be(monkeypatch):
    """And those of HAProxy if there is none."""
    with pytest.raises(ConfigurationError, match=r"http_options\.port"):
        check_ports({"port": 70_000})
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(taken.getsockname()[1]))
        check_ports({"port": port})


def test_anchors_and_merges_are_yaml(tmp_path):
    """As Ray reads them; a merged key may be overridden."""
    text = SHIPPED.read_text(encoding="utf-8")
    text = text.replace("      - name: ImageLoader ", "      - &loader\n        name: ImageLoader ")
    text = text.replace("      - name: Polygonizer ", "      - <<: *loader\n        name: Polygonizer ")
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert check_config(path) == check_config(SHIPPED)


def test_files_that_are_elsewhere_are_mentioned(tmp_path, document, monkeypatch, capsys):
    """The check may run on another machine than the service: a note, no error."""
    document["applications"][0]["args"]["model"]["name"] = str(tmp_path / "mine.pth")
    monkeypatch.setattr(sys, "argv", ["config_file", str(write(tmp_path, document))])
    assert main() == 0
    assert "mine.pth is not on this machine" in capsys.readouterr().err


def test_relative_paths_are_mentioned(tmp_path, document, monkeypatch, capsys):
    """They work where Ray was started in that folder, so a note; `~` and whole paths have none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.txt").write_text("key\n")
    arguments = document["applications"][0]["args"]
    arguments["ingress"]["auth"], arguments["model"]["name"] = {"keys_file": "keys.txt"}, "~/mine.pth"
    monkeypatch.setattr(sys, "argv", ["config_file", str(write(tmp_path, document))])
    assert main() == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "whole path" in line]
    assert len(notes) == 1
    assert "note: keys.txt is looked up in the folder in which Ray was started" in notes[0]


@pytest.mark.parametrize("content", [None, "", "# no key\n"], ids=["a folder", "empty", "a comment alone"])
def test_a_keys_file_without_keys(tmp_path, document, content):
    """What is here under that name must hold a key, or no replica starts."""
    keys = tmp_path / "keys"
    keys.mkdir() if content is None else keys.write_text(content)
    document["applications"][0]["args"]["ingress"]["auth"] = {"keys_file": str(keys)}
    with pytest.raises(ConfigurationError, match=r"ingress\.auth\.keys_file: .*keys (cannot be read|holds no key)"):
        check_config(write(tmp_path, document))


def test_a_keys_file_in_the_home_folder(tmp_path, document, monkeypatch):
    """Found and read; where it is not there, it is mentioned as any other."""
    monkeypatch.setenv("HOME", str(tmp_path))
    document["applications"][0]["args"]["ingress"]["auth"] = {"keys_file": "~/keys.txt"}
    (settings,) = check_config(write(tmp_path, document))
    assert absent_files(settings) == [Path("~/keys.txt")]
    (tmp_path / "keys.txt").write_text("first\n")
    (settings,) = check_config(write(tmp_path, document))
    assert absent_files(settings) == []


def test_certificate_authorities_of_ones_own(tmp_path, document):
    """Read where the file is here, and mentioned where not."""
    authorities = tmp_path / "authorities.pem"
    document["applications"][0]["args"]["image_loader"]["fetch"] = {"ca_file": str(authorities)}
    (settings,) = check_config(write(tmp_path, document))
    assert absent_files(settings) == [authorities]
    authorities.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"ca_file: .*authorities\.pem cannot be read as PEM certificates"):
        check_config(write(tmp_path, document))
    authorities.write_bytes(Path(certifi.where()).read_bytes())
    (settings,) = check_config(write(tmp_path, document))
    assert absent_files(settings) == []


@pytest.mark.parametrize("content", ["name: é".encode("latin-1"), "name: a".encode("utf-16")], ids=["Latin-1", "UTF-16"])
def test_a_file_that_is_not_utf8(tmp_path, content):
    """As some editors write it."""
    path = tmp_path / "serve_config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read as UTF-8 text"):
        check_config(path)


def test_ray_env_beside_the_file_counts(tmp_path, document, monkeypatch, capsys):
    """The command reads it as `make serve` does, so both refuse the same; a variable of the environment wins."""
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", None)
    document["applications"][0]["args"]["ingress"]["timeout_s"] = 40
    document["applications"][0]["deployments"][0]["graceful_shutdown_timeout_s"] = 50
    path = write(tmp_path, document)
    monkeypatch.setattr(sys, "argv", ["config_file", str(path)])
    assert main() == 0
    (tmp_path / "ray.env").write_text("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S=35\n")
    assert main() == 1
    assert "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S (35, see ray.env)" in capsys.readouterr().err
    os.environ["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] = "45"
    assert main() == 0


@pytest.mark.parametrize("setting", ["http_options.port", *HAPROXY_PORTS])
def test_ports_that_are_taken(monkeypatch, setting):
    """By their setting; free ones are good, and so is the port of a connection that ended a moment ago."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        port, other_port = one.getsockname()[1], other.getsockname()[1]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    for name in HAPROXY_PORTS:
        monkeypatch.setenv(name, str(port if name == setting else other_port))
    http = {"port": port if setting == "http_options.port" else other_port}
    check_ports(http)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigurationError, match=rf"port {port} .*{setting}"):
        check_ports(http)


def test_unreadable_file(tmp_path):
    """A missing or broken file is an error of ours, not a traceback."""
    with pytest.raises(ConfigurationError):
        check_config(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError):
        check_config(tmp_path / "broken.yaml")
