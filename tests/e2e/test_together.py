"""The layout for one small machine: one replica holds all stages, and answers as the stages apart do."""

from dataclasses import dataclass

import pytest
import requests

from loadtest.service.local_service import REPOSITORY, local_service
from tests.support.request_body import as_body

PARAMS = [{}, {"mask_format": "rle", "score_threshold": 0.1}, {"on_error": "isolate"}]


@dataclass(frozen=True)
class Together:
    """What the service in one replica answered, and its replicas by stage."""

    answers: dict[str, list[requests.Response]]
    several: requests.Response
    replicas: dict[str, int]


def asked(service, photos, params) -> list[requests.Response]:
    """Two photos and what is none; the batch an image shared may change a score in the sixth digit, so one at a time."""
    images = (photos[0], photos[3], b"no image")
    return [requests.post(f"{service.url}/score", json=as_body([image], **params), timeout=60) for image in images]


@pytest.fixture(scope="package")
def together(photos) -> Together:
    """It has ended when the other service starts: both would take 2 GB more."""
    with local_service(config=REPOSITORY / "serve_config.together.yaml") as running:
        answers = {str(params): asked(running, photos, params) for params in PARAMS}
        several = requests.post(f"{running.url}/score", json=as_body(photos), timeout=60)
        stages = ("Ingress", "ImageLoader", "Detector", "Polygonizer")
        return Together(answers, several, {stage: len(running.replica_pids(stage)) for stage in stages})


def test_one_replica_and_its_decoders(together, photos):
    """There is no other replica; several images go in one request."""
    assert together.replicas == {"Ingress": 1, "ImageLoader": 0, "Detector": 0, "Polygonizer": 0}
    assert len(together.several.json()) == len(photos)


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_same_answers(together, service, photos, params):
    """Byte for byte, a bad image among them."""
    for near, apart in zip(together.answers[str(params)], asked(service, photos, params), strict=True):
        assert near.status_code == apart.status_code
        assert near.json() == apart.json()
