"""Images share passes of the network: those of one request, and those of several clients.

The first module of the end-to-end tests by name, before replicas are killed and take their counters with them.
"""

from concurrent.futures import ThreadPoolExecutor

import requests

from tests.e2e.batches import settled_batches, wait_for_batches
from tests.support.request_body import as_body


def post(service, images):
    return requests.post(f"{service.url}/score", json=as_body(images), timeout=60)


def test_images_of_one_request_share_a_batch(service, photos):
    """Eight images in one request: some pass of the network held several of them."""
    before = settled_batches(service)
    assert post(service, photos).status_code == 200
    added = wait_for_batches(service, before, images=8)
    assert added.passes < 8
    assert added.images == 8


def test_images_of_several_clients_share_a_batch(service, photos):
    """Sixteen clients with one image each: fewer passes than images."""
    before = settled_batches(service)
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda photo: post(service, [photo]), photos * 2))
    assert {answer.status_code for answer in answers} == {200}
    added = wait_for_batches(service, before, images=16)
    assert added.passes < 16
    assert added.images == 16
