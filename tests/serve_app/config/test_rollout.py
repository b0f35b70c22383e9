"""What a change of the configuration needs, said beforehand."""

from pathlib import Path

import pytest
import yaml

from deployments.settings import Settings
from pipeline.errors import ConfigurationError
from serve_app.config.rollout import check_user_configs, room_for_update

REPOSITORY = Path(__file__).parents[3]


def deployments_of(name):
    document = yaml.safe_load((REPOSITORY / name).read_text())
    return {entry["name"]: entry for entry in document["applications"][0]["deployments"]}


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("serve_config.yaml", "0.6 CPU for another Detector"),
        ("serve_config.gpu.yaml", "1 GPU for another Detector"),
        ("serve_config.together.yaml", "1 CPU for another Ingress"),
    ],
)
def test_no_shipped_file_stops_its_only_network_first(name, room):
    """The new one starts beside the old, and what that takes is said."""
    assert room in room_for_update(deployments_of(name))


def test_two_detectors_fit_on_two_cores():
    """Of the shipped file for one machine: all stages and one Detector more."""
    stages = deployments_of("serve_config.yaml").values()
    used = sum(entry["num_replicas"] * entry["ray_actor_options"]["num_cpus"] for entry in stages)
    assert used + 0.6 <= 2 + 1e-9


def test_a_detector_that_is_stopped_first_is_reported():
    """Where nothing surges, the line says what a change of args does."""
    assert "stops the old Detector before" in room_for_update({"Detector": {}, "Ingress": {}})


def test_settings_of_a_user_config_are_checked_with_the_file():
    """They are over those of args; other deployments take none."""
    settings = check_user_configs({"Ingress": {"user_config": {"detector": {"score_threshold": 0.5}}}}, Settings())
    assert settings.detector.score_threshold == 0.5
    with pytest.raises(ConfigurationError, match=r"deployments\[Detector\].user_config: only the Ingress"):
        check_user_configs({"Detector": {"user_config": {"score_threshold": 0.5}}}, Settings())
