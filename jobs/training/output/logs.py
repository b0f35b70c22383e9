"""`--log-to`: mmengine's backends; its MLflow takes any class name and keeps a run beside its checkpoints."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import dataclasses
import os
import re
from typing import Any

from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend

from jobs.training.settings import FinetuneSettings

LONGEST_PARAM = 500
"""Characters of a parameter that every version of MLflow takes."""


def log_backends(settings: FinetuneSettings) -> list[dict[str, Any]]:
    """mmengine's configuration of the backends for --log-to."""
    folder, server = settings.work_dir.resolve(), os.environ.get("MLFLOW_TRACKING_URI")
    backends: dict[str, dict[str, Any]] = {
        "tensorboard": {"type": "TensorboardVisBackend"},
        "mlflow": {
            "type": "MlflowBackend",
            "exp_name": "jobs.finetune",
            "run_name": settings.work_dir.name,
            "tracking_uri": server or f"sqlite:///{folder / 'mlflow.db'}",
            "artifact_location": None if server else (folder / "mlflow").as_uri(),
            "params": {name: str(value)[:LONGEST_PARAM] for name, value in dataclasses.asdict(settings).items()},
            "tracked_config_keys": [],
            "artifact_suffix": (".log", ".py", ".png"),
        },
    }
    return [backends[name] for name in settings.log_to]


@VISBACKENDS.register_module()
class MlflowBackend(MLflowVisBackend):
    """mmengine's backend for MLflow. MLflow refuses metrics whose names contain quotes or commas, and the run would end with it."""

    def add_scalar(self, name: str, value: Any, step: int = 0, **more: Any) -> None:
        """Log a number under the name that MLflow takes, as `add_scalars`."""
        super().add_scalar(metric_name(name), value, step, **more)

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **more: Any) -> None:
        """Log numbers under the names that MLflow takes."""
        super().add_scalars({metric_name(name): value for name, value in scalar_dict.items()}, step, file_path, **more)


def metric_name(name: str) -> str:
    """`mask_ap/cup, "large"` → `mask_ap/cup_ _large_`: letters, digits and - _ . and spaces, in which a class may not add a folder."""
    kind, slash, label = name.partition("/")
    cleaned = re.sub(r"[^\w\-. ]", "_", label)
    return kind + slash + ("_" if set(cleaned) == {"."} else cleaned)
