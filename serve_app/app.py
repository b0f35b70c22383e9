"""Binds the graph: settings in, Ray Serve application out. The `import_path` of serve_config.yaml.

Ingress ─▶ ImageLoader ─▶ Detector ─▶ Polygonizer
"""

# No `from __future__ import annotations`: Ray Serve reads the annotation of build_app to validate `args`.
from functools import partial
from importlib import import_module
from typing import Any

from ray.serve import Application

from deployments.detector import DetectorOptions
from deployments.grouping import GroupLimits
from deployments.image_loader import ImageLoaderOptions
from deployments.in_process import StageInProcess
from deployments.ingress import Ingress, IngressOptions
from deployments.polygonizer import PolygonizerOptions
from pipeline.images.decode import DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.fetch import FetchPolicy
from pipeline.inference.engine import EngineOptions, SimulatedStep
from pipeline.model.zoo import ModelHeader, read_header
from pipeline.types import DetectOptions, OutlineOptions
from serve_app.exposure import http_app_unless_exposed
from serve_app.settings import Settings


def build_app(settings: Settings) -> Application:
    """The application for these settings.

    Args:
        settings: the `args` of the application in serve_config.yaml, already checked by Ray Serve against the type.
    Returns:
        The ingress, bound to its three stages, or holding them (`layout: together`). Replicas, queue bounds, CPUs and GPUs are Ray Serve's
        (`deployments` in serve_config.yaml).
    Raises:
        SetupError: the model or the settings cannot be used; the message says what to change.
    """
    header = read_header(settings.model.name, settings.model.cache_dir.expanduser())
    bind = StageInProcess if settings.layout == "together" else _bind
    return Ingress.bind(  # type: ignore[attr-defined]  # Ray types a decorated class as the class itself
        bind("deployments.image_loader", "ImageLoader", _image_loader_options(settings, header)),
        bind("deployments.detector", "Detector", _detector_options(settings)),
        bind("deployments.polygonizer", "Polygonizer", PolygonizerOptions(header.classes, settings.polygonizer.threads)),
        _ingress_options(settings, header),
        partial(http_app_unless_exposed, settings=settings),
    )


def _bind(module: str, name: str, options: Any) -> Application:
    bound: Application = getattr(import_module(module), name).bind(options)
    return bound


def _image_loader_options(settings: Settings, header: ModelHeader) -> ImageLoaderOptions:
    loader, fetch = settings.image_loader, settings.image_loader.fetch
    max_bytes = int(loader.max_image_mb * 1e6)
    policy = FetchPolicy(
        connect_timeout_s=fetch.connect_timeout_s,
        read_timeout_s=fetch.read_timeout_s,
        total_timeout_s=fetch.total_timeout_s,
        max_bytes=max_bytes,
        max_redirects=fetch.max_redirects,
        retries=fetch.retries,
        allowed_ports=tuple(fetch.allowed_ports),
        allowed_hosts=tuple(fetch.allowed_hosts),
        allowed_networks=tuple(fetch.allowed_networks),
    )
    limits = DecodeLimits(int(loader.max_megapixels * 1e6), max_bytes, exif_orientation=loader.exif_orientation)
    return ImageLoaderOptions(policy, DecoderOptions(limits, header.input_size, loader.decode_timeout_s), loader.threads)


def _detector_options(settings: Settings) -> DetectorOptions:
    detector = settings.detector
    return DetectorOptions(settings.model.name, engine_options(settings), detector.max_batch, detector.max_wait_ms / 1e3)


def engine_options(settings: Settings) -> EngineOptions:
    """What a Detector of these settings loads its engine with."""
    detector = settings.detector
    return EngineOptions(
        kind=detector.engine,
        precision=detector.precision,
        device=detector.device,
        threads=detector.threads,
        max_batch=detector.max_batch,
        fitted=detector.fitted_input,
        cuda_kernels=detector.cuda_kernels,
        cache_dir=settings.model.cache_dir.expanduser(),
        simulated=SimulatedStep(**detector.simulated.model_dump()),
    )


def _ingress_options(settings: Settings, header: ModelHeader) -> IngressOptions:
    ingress, detector, polygonizer = settings.ingress, settings.detector, settings.polygonizer
    return IngressOptions(
        classes=header.classes,
        detect=DetectOptions(detector.score_threshold, detector.max_detections),
        outline=OutlineOptions(polygonizer.tolerance_px, polygonizer.max_points, polygonizer.decimals, polygonizer.holes),
        timeout_s=ingress.timeout_s,
        max_images_per_request=ingress.max_images_per_request,
        max_images_in_flight=ingress.max_images_in_flight,
        overload_status=ingress.overload_status,
        retry_after_s=ingress.retry_after_s,
        ready_cache_s=ingress.ready_cache_s,
        groups=GroupLimits(ingress.groups.max_images, int(ingress.groups.max_mb * 1e6), ingress.groups.max_in_flight),
        max_urls_in_flight=ingress.max_urls_in_flight,
    )
