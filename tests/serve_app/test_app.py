"""From settings to what the stages take."""

from deployments.grouping import GroupLimits
from pipeline.images.decode import DecodeLimits
from pipeline.images.fetch import FetchPolicy
from pipeline.model.zoo import read_header
from pipeline.types import DetectOptions, OutlineOptions
from serve_app import app
from serve_app.settings import EMBEDDED_MODEL, Settings


def test_defaults_are_the_same_on_both_sides():
    """Jobs and load tests, which take the pipeline's own defaults, refuse and find what the service does."""
    settings = Settings()
    header = read_header(EMBEDDED_MODEL, settings.model.cache_dir)
    loader, ingress = app._image_loader_options(settings, header), app._ingress_options(settings, header)
    assert loader.fetch == FetchPolicy()
    assert loader.decoder.limits == DecodeLimits()
    assert ingress.groups == GroupLimits()
    assert (ingress.detect, ingress.outline) == (DetectOptions(), OutlineOptions())


def test_exif_orientation_reaches_the_decoders():
    """`image_loader.exif_orientation: false` is for clients that draw on photos as they are stored."""
    settings = Settings(image_loader={"exif_orientation": False})
    loader = app._image_loader_options(settings, read_header(EMBEDDED_MODEL, settings.model.cache_dir))
    assert loader.decoder.limits == DecodeLimits(exif_orientation=False)
