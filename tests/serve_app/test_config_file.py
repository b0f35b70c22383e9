"""serve_config.yaml: the shipped file is good, and mistakes Ray Serve would swallow are errors."""

from pathlib import Path

import pytest
import yaml

from pipeline.errors import ConfigurationError
from serve_app.config_file import check_config

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


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        pytest.param(["http_options"], "prot", 80, r"http_options: unknown key\(s\) prot", id="http option"),
        pytest.param(
            ["applications", 0, "deployments", 2],
            "num_replica",
            2,
            r"Detector.*unknown key\(s\) num_replica",
            id="deployment option",
        ),
        pytest.param(["applications", 0, "deployments", 2, "ray_actor_options"], "gpus", 1, "gpus", id="actor option"),
        pytest.param(["applications", 0, "deployments", 2], "name", "Detecter", "no such deployment", id="deployment name"),
        pytest.param(
            ["applications", 0, "deployments", 2],
            "max_ongoing_requests",
            9,
            "cannot fill batches of 8",
            id="too little concurrency",
        ),
        pytest.param(["applications", 0, "args", "detector"], "max_bach", 8, "detector.max_bach", id="our setting"),
        pytest.param(["applications", 0, "args", "detector"], "max_batch", 0, "detector.max_batch", id="value out of range"),
        pytest.param(
            ["applications", 0, "args", "ingress"], "max_images_in_flight", 5, "max_images_in_flight", id="limits that contradict"
        ),
        pytest.param(["http_options"], "host", "0.0.0.0", "no keys are set", id="open to the world"),
        pytest.param(
            ["applications", 0, "deployments", 2],
            "autoscaling_config",
            {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 48},
            "2 replicas are never reached.*max_under_way",
            id="autoscaling without effect",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, document, place, key, value, message):
    """Each mistake is an error that names its place."""
    section = document
    for step in place:
        section = section[step]
    section[key] = value
    if key == "autoscaling_config":
        del section["num_replicas"]
    with pytest.raises(ConfigurationError, match=message):
        check_config(write(tmp_path, document))


def test_file_for_gpus_is_good():
    """The other shipped files pass too; this one listens to the network, with keys."""
    (settings,) = check_config(SHIPPED.with_name("serve_config.gpu.yaml"))
    assert settings.ingress.auth.keys_file
    assert check_config(SHIPPED.with_name("serve_config.together.yaml"))


@pytest.mark.parametrize("auth", [{"keys_env": ["KEY"]}, {"keys_file": "/run/keys"}, {"allow_anonymous": True}])
def test_open_address_with_keys_or_leave(tmp_path, document, auth):
    """Beyond loopback it wants keys, or to be told that none are wanted."""
    document["http_options"]["host"] = "0.0.0.0"
    document["applications"][0]["args"]["ingress"]["auth"] = auth
    assert check_config(write(tmp_path, document))


def test_unreadable_file(tmp_path):
    """A missing or broken file is an error of ours, not a traceback."""
    with pytest.raises(ConfigurationError):
        check_config(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigurationError):
        check_config(tmp_path / "broken.yaml")
