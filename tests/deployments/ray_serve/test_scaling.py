"""How many ImageLoaders are wanted."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.serve.config import AutoscalingConfig

from deployments.ray_serve.scaling import by_decoding

REPOSITORY = Path(__file__).parents[3]


def context(metrics, calls=0.0, replicas=4):
    config = AutoscalingConfig(min_replicas=1, max_replicas=16, target_ongoing_requests=2)
    return SimpleNamespace(
        aggregated_metrics=metrics,
        config=config,
        total_num_requests=calls,
        current_num_replicas=replicas,
        target_num_replicas=replicas,
    )


@pytest.mark.parametrize(
    ("decoding", "wanted"), [({"a": 0.0, "b": 0.0}, 0), ({"a": 2.0, "b": 2.0}, 2), ({"a": 9.0, "b": 3.5}, 6.25)], ids=str
)
def test_replicas_follow_the_decoding(decoding, wanted):
    """500 calls that wait for URLs start no replica."""
    assert by_decoding(context({"decoding": decoding}, calls=500.0)) == (wanted, {})


@pytest.mark.parametrize("metrics", [{}, None, {"decoding": {}}], ids=repr)
def test_before_anything_is_reported_rays_default_counts(metrics):
    """Calls in flight by the target of 2."""
    assert by_decoding(context(metrics, calls=10.0))[0] == 5


def test_the_shipped_file_names_the_policy():
    """Ray can import what it names."""
    document = yaml.safe_load((REPOSITORY / "serve_config.gpu.yaml").read_text())
    (given,) = (e["autoscaling_config"] for e in document["applications"][0]["deployments"] if e["name"] == "ImageLoader")
    config = AutoscalingConfig(**given)
    config.policy.serialize_policy()
    assert config.policy.get_policy()(context({"decoding": {"a": 3.0}}, calls=500.0)) == (1.5, {})
