"""Admission in front of the stages, without Ray."""

from collections import Counter
from types import SimpleNamespace

import pytest

from deployments.ingress import Ingress
from deployments.params import ScoreParams
from deployments.settings import Settings
from pipeline.errors import InvalidRequest, LimitExceeded, Overloaded

PLAIN_INGRESS = [cls for cls in Ingress.func_or_class.__mro__ if cls.__module__ == "deployments.ingress"][-1]
"""The class below Ray Serve's wrapper."""

STAGE = SimpleNamespace()
SETTINGS = Settings(ingress={"max_images_per_request": 4, "max_images_in_flight": 4, "overload_status": 429, "retry_after_s": 2})


class BusyGraph:
    """Refuses everything, as a ScoringGraph whose queue is longer than a request's deadline."""

    async def score(self, *_):
        raise Overloaded("busy", retry_after_s=2, status=429)


@pytest.fixture
async def ingress():
    ingress = PLAIN_INGRESS(STAGE, STAGE, STAGE, SETTINGS, ("person",), None)
    ingress._graph = BusyGraph()
    return ingress


def score(ingress, images):
    return ingress.score_images(images, ScoreParams(), ingress.context(), encoded=True)


async def test_refusals_leave_the_room_free(ingress):
    """What the graph refuses is no longer in flight; what finds no room never was."""
    for _ in range(3):
        with pytest.raises(Overloaded):
            await score(ingress, ["image"] * 3)
    with ingress.admitted(4), pytest.raises(Overloaded) as caught:
        await score(ingress, ["image"])
    assert (caught.value.status, caught.value.retry_after_s) == (429, 2)


async def test_errors_are_counted_once_by_their_code(ingress):
    """For as many images as they cost; one where nobody knows how many there are."""
    counted: Counter[str] = Counter()
    ingress._metrics = SimpleNamespace(failed=lambda code, images: counted.update({code: images}))
    with pytest.raises(Overloaded):
        await score(ingress, ["image"] * 3)
    with pytest.raises(LimitExceeded, match=r"5 images; the limit is 4 \(ingress.max_images_per_request\)") as caught:
        await score(ingress, ["image"] * 5)
    assert (caught.value.status, caught.value.code) == (413, "too_many_images")
    with pytest.raises(InvalidRequest):
        await ingress.score_images([], ScoreParams(labels=["unicorn"]), ingress.context(), encoded=True)
    with pytest.raises(Overloaded), ingress.errors_counted():
        ingress.check_room(5)
    assert counted == {"overloaded": 4, "too_many_images": 5, "invalid_request": 1}


async def test_the_model_is_asked_for_once(ingress):
    """It cannot change under a running ingress."""
    asked = []

    async def model_info(timeout_s):
        asked.append(timeout_s)
        return "model"

    ingress._graph = SimpleNamespace(model_info=model_info)
    assert [await ingress.model_info() for _ in range(3)] == ["model"] * 3
    assert asked == [5.0]


async def test_no_images_are_no_load(ingress):
    """Nothing to refuse, nothing to count: Ray's counters raise on a 0."""
    assert await score(ingress, []) == []
