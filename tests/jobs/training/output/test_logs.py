"""--log-to, with MLflow where it is installed."""

import pytest

from jobs.training.output.logs import MlflowBackend, log_backends, metric_name
from jobs.training.settings import FinetuneSettings


def settings(folder, **more):
    return FinetuneSettings(train=folder, train_images=folder, work_dir=folder / "my run", log_to=("mlflow",), **more)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("mask_ap/window", "mask_ap/window"),
        ("loss", "loss"),
        ('box_ap/cup, "large"', "box_ap/cup_ _large_"),
        ("box_ap/boîte d'outils", "box_ap/boîte d_outils"),
        ("box_ap/in/out", "box_ap/in_out"),
        ("box_ap/..", "box_ap/_"),
    ],
)
def test_any_class_name_is_a_metric(name, taken):
    assert metric_name(name) == taken


def test_a_server_is_taken_from_the_environment(tmp_path, monkeypatch):
    """mmengine itself does not look there; without one, MLflow takes a database alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (here,) = log_backends(settings(tmp_path))
    assert here["tracking_uri"] == f"sqlite:///{tmp_path}/my run/mlflow.db"
    assert here["artifact_location"].endswith("/my%20run/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    (there,) = log_backends(settings(tmp_path))
    assert (there["tracking_uri"], there["artifact_location"]) == ("http://mlflow:5000", None)


def test_mlflow_takes_what_is_logged(tmp_path, monkeypatch):
    """Settings as parameters, and numbers of classes with quotes and commas."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "my run").mkdir()
    (config,) = log_backends(settings(tmp_path, name="long" * 400))
    config.pop("type")
    backend = MlflowBackend(save_dir=str(tmp_path / "my run"), **config)
    backend.add_scalars({'mask_ap/cup, "large"': 0.5, "loss": 1.0}, 3)
    run = mlflow.active_run().info.run_id
    assert mlflow.get_run(run).data.metrics == {"mask_ap/cup_ _large_": 0.5, "loss": 1.0}
    mlflow.end_run()
