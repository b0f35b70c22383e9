"""The layout for one small machine: one replica holds all stages, and answers as the stages apart do."""

import pytest
import requests

from loadtest.local_service import REPOSITORY, local_service
from tests.e2e.conftest import as_body


@pytest.fixture(scope="module")
def together():
    with local_service(config=REPOSITORY / "serve_config.together.yaml") as running:
        yield running


@pytest.mark.parametrize("params", [{}, {"mask_format": "rle", "score_threshold": 0.1}, {"on_error": "isolate"}], ids=str)
def test_same_answers(service, together, photos, params):
    """Byte for byte, a bad image among them; the batch an image shared may change a score in the sixth digit, so one at a time."""
    for image in (photos[0], photos[3], b"no image"):
        apart, near = (
            requests.post(f"{one.url}/score", json=as_body([image], **params), timeout=60) for one in (service, together)
        )
        assert near.status_code == apart.status_code
        assert near.json() == apart.json()


def test_one_replica_and_its_decoders(together, photos):
    """There is no other replica; several images of a request share a pass of the network."""
    assert len(together.replica_pids("Ingress")) == 1
    assert not any(together.replica_pids(stage) for stage in ("ImageLoader", "Detector", "Polygonizer"))
    assert requests.get(f"{together.url}/ready", timeout=10).ok
    answer = requests.post(f"{together.url}/score", json=as_body(photos), timeout=60)
    assert len(answer.json()) == len(photos)
