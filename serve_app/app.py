"""Builds the Ray Serve application from the settings. serve_config.yaml names `build_app` as its `import_path`.

Ingress ─▶ ImageLoader ─▶ Detector ─▶ Polygonizer
"""

# No `from __future__ import annotations`: Ray Serve reads the annotation of build_app to validate `args`.
from functools import partial
from importlib import import_module
from typing import Any

from ray.serve import Application

from deployments.ingress import Ingress
from deployments.settings import Settings
from deployments.stages.in_process import LocalStage
from pipeline.model.zoo import read_header
from serve_app.http.exposure import http_app_unless_exposed


def build_app(settings: Settings) -> Application:
    """The application for these settings.

    Args:
        settings: the `args` of the application in serve_config.yaml, already checked by Ray Serve against the type.
    Returns:
        The ingress, bound to its three stages, or with the stages inside it (`layout: together`). Each deployment takes its section
        of the settings. Replicas, queue limits, CPUs and GPUs are set under `deployments` in serve_config.yaml.
    Raises:
        SetupError: the model or the settings cannot be used; the message says what to change.
    """
    header = read_header(settings.model.name, settings.model.cache_dir.expanduser())
    bind = _local if settings.layout == "together" else _bind
    return Ingress.bind(  # type: ignore[attr-defined, no-any-return]  # Ray types a decorated class as the class itself
        bind("deployments.image_loader", "ImageLoader", settings.image_loader, header.input_size),
        bind("deployments.detector", "Detector", settings.model, settings.detector),
        bind("deployments.polygonizer", "Polygonizer", header.classes, settings.polygonizer),
        settings,
        header.classes,
        partial(http_app_unless_exposed, settings=settings),
    )


def _bind(module: str, name: str, *arguments: Any) -> Application:
    bound: Application = getattr(import_module(module), name).bind(*arguments)
    return bound


def _local(module: str, name: str, *arguments: Any) -> LocalStage:
    return LocalStage(module, name, arguments)
