"""From settings to the graph of deployments."""

from contextlib import closing
from pathlib import Path

import certifi
import pytest

from deployments.image_loader import ImageLoader
from deployments.settings import ImageLoaderSettings, Settings
from pipeline.images.decode import DecodeLimits
from pipeline.images.fetch import FetchPolicy
from serve_app.app import build_app


def test_defaults_are_the_same_on_both_sides():
    """Jobs and load tests, which take the pipeline's own defaults, refuse what the service refuses."""
    loader = ImageLoader.func_or_class(Settings().image_loader, 320)
    with closing(loader):
        assert loader._limits == DecodeLimits()
        assert loader._fetcher._policy == FetchPolicy()


def test_settings_reach_the_decoders():
    """`image_loader.exif_orientation: false` is for clients that draw on photos as they are stored."""
    loader = ImageLoader.func_or_class(ImageLoaderSettings(exif_orientation=False, white_level=4095), 320)
    with closing(loader):
        assert loader._limits == DecodeLimits(exif_orientation=False, white_level=4095)


def test_settings_reach_the_fetcher():
    """Such as the certificate authorities that your own network's servers are verified with."""
    fetch = {"ca_file": certifi.where(), "allowed_ports": [8443]}
    loader = ImageLoader.func_or_class(ImageLoaderSettings(fetch=fetch), 320)
    with closing(loader):
        assert loader._fetcher._policy == FetchPolicy(ca_file=certifi.where(), allowed_ports=(8443,))


@pytest.mark.parametrize("layout", ["stages", "together"])
def test_each_deployment_is_given_its_section(layout, tmp_path):
    """Whatever stands in a section arrives; nothing is copied field by field on the way."""
    settings = Settings(layout=layout, model={"cache_dir": Path(tmp_path)}, detector={"max_batch": 3})
    *stages, given, classes, _ = build_app(settings)._bound_deployment.init_args
    arguments = (
        [stage.arguments for stage in stages] if layout == "together" else [stage._bound_deployment.init_args for stage in stages]
    )
    assert given is settings
    assert classes == ("person",)
    assert arguments == [(settings.image_loader, 640), (settings.model, settings.detector), (classes, settings.polygonizer)]
