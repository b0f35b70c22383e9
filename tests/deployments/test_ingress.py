"""Admission in front of the stages, without Ray."""

import logging
import math
import re
from collections import Counter
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from deployments import ingress as ingress_module
from deployments.detector import Detector
from deployments.image_loader import ImageLoader
from deployments.ingress import Ingress
from deployments.params import ScoreParams
from deployments.polygonizer import Polygonizer
from deployments.settings import Settings
from pipeline.errors import ConfigurationError, ImageError, ImageFault, InvalidRequest, LimitExceeded, Overloaded

PLAIN_INGRESS = [cls for cls in Ingress.func_or_class.__mro__ if cls.__module__ == "deployments.ingress"][-1]
"""The class below Ray Serve's wrapper."""

STAGE = SimpleNamespace()
SETTINGS = Settings(ingress={"max_images_per_request": 4, "max_images_in_flight": 4, "overload_status": 429, "retry_after_s": 2})


@pytest.fixture
async def ingress():
    """Whose graph has no calls, and refuses what it admits."""
    ingress = PLAIN_INGRESS(STAGE, STAGE, STAGE, SETTINGS, ("person",), None)

    async def refuse(*_):
        raise Overloaded("busy", retry_after_s=2, status=429)

    ingress._graph._score_admitted = refuse
    return ingress


@pytest.fixture
def counted(ingress, monkeypatch):
    """What the metrics of the ingress were told, by metric and tags."""
    counts = {name: Counter() for name in ("errors", "images", "callers", "latency")}

    def counter(name, *tags):
        def inc(value=1, tags_given=None, **more):
            given = tags_given or more.get("tags") or {}
            key = tuple(given[tag] for tag in tags)
            counts[name][key[0] if len(tags) == 1 else key or ""] += value

        return inc

    metrics = ingress._metrics
    for attribute, name, *tags in (
        ("_errors", "errors", "code"),
        ("_images", "images"),
        ("_by_caller", "callers", "caller", "code"),
    ):
        monkeypatch.setattr(getattr(metrics, attribute), "inc", counter(name, *tags))
    observe = counter("latency", "outcome")
    monkeypatch.setattr(metrics._latency, "observe", lambda _, tags: observe(1, tags))
    return counts


def score(ingress, images, caller=""):
    return ingress.score_images(images, ScoreParams(), ingress.context(caller=caller), answer_format="json")


async def test_refused_images_free_their_room(ingress):
    """Images refused by the graph are no longer in flight; images without room never were."""
    for _ in range(3):
        with pytest.raises(Overloaded):
            await score(ingress, ["image"] * 3)
    admission = ingress._graph.admission
    with admission.admitted(["image"] * 4, ingress.context()), pytest.raises(Overloaded) as caught:
        await score(ingress, ["image"])
    assert caught.value.status == 429
    assert caught.value.retry_after_s in (2, 3)
    assert admission.ordinary.admitted == 0


async def test_errors_are_counted_once_by_their_code(ingress, counted):
    """By the number of failed images; as one image if the number is not known."""
    with pytest.raises(Overloaded):
        await score(ingress, ["image"] * 3)
    with pytest.raises(LimitExceeded, match=r"5 images; the limit is 4 \(ingress.max_images_per_request\)") as caught:
        await score(ingress, ["image"] * 5)
    assert (caught.value.status, caught.value.code) == (413, "too_many_images")
    with pytest.raises(InvalidRequest):
        await ingress.score_images([], ScoreParams(labels=["unicorn"]), ingress.context(), answer_format="json")
    for caller in (None, "abc"):
        with (
            pytest.raises(Overloaded),
            ingress.errors_counted(caller),
            ingress._graph.admission.admitted(["image"] * 4, ingress.context()),
        ):
            ingress.check_room()
    assert counted["errors"] == {"overloaded": 5, "too_many_images": 5, "invalid_request": 1}
    assert counted["callers"] == {
        ("any", "overloaded"): 3,
        ("any", "too_many_images"): 5,
        ("any", "invalid_request"): 1,
        ("abc", "overloaded"): 1,
    }
    assert counted["latency"] == {"failed": 3}


async def test_one_bad_image_is_one_error(ingress, counted):
    """Whether it fails its request or is isolated; who asked is counted, too, and how long it took."""

    async def failing(*_):
        error = ImageError("bad")
        error.faults = (ImageFault(2, error.code, "bad"),)
        raise error

    async def isolating(*_):
        return ["answer", ImageFault(1, "image_not_decodable", "bad"), "answer"]

    ingress._graph = SimpleNamespace(score=failing)
    with pytest.raises(ImageError):
        await score(ingress, ["image"] * 3, "abc")
    assert counted["errors"] == {"image_not_decodable": 1}
    ingress._graph = SimpleNamespace(score=isolating)
    await score(ingress, ["image"] * 3, "abc")
    assert counted["errors"] == {"image_not_decodable": 2}
    assert counted["images"] == {"": 2}
    assert counted["callers"] == {("abc", "image_not_decodable"): 2, ("abc", "done"): 2}
    assert counted["latency"] == {"failed": 1, "done": 1}


async def test_a_picture_is_not_isolated(ingress):
    """It cannot show an error: a bad image fails the request, as without `on_error`."""
    params = ScoreParams(on_error="isolate")
    assert ingress.score_options(params, "json").isolate
    assert ingress.score_options(params, "objects").isolate
    assert not ingress.score_options(params, "png").isolate
    assert not ingress.score_options(params, "jpeg").isolate


async def test_the_model_is_asked_for_once_in_a_while(ingress, monkeypatch):
    """During an update the first detector to answer may have the old model; a busy one changes nothing."""
    asked = []

    async def busy(_timeout_s):
        raise Overloaded("busy")

    async def model_info(timeout_s):
        asked.append(timeout_s)
        return "model"

    ingress._graph = SimpleNamespace(model_info=model_info)
    assert [await ingress.model_info() for _ in range(3)] == ["model"] * 3
    assert asked == [5.0]
    monkeypatch.setattr(ingress_module, "MODEL_INFO_S", -1.0)
    ingress._model = None
    assert [await ingress.model_info() for _ in range(2)] == ["model"] * 2
    assert len(asked) == 3
    ingress._graph = SimpleNamespace(model_info=busy)
    assert await ingress.model_info() == "model"
    ingress._model = None
    with pytest.raises(Overloaded):
        await ingress.model_info()


@pytest.mark.parametrize(
    ("images", "more", "said"),
    [
        ("http://host/a.jpg", {}, "must be a list of images, got str; put a single"),
        (np.zeros((2, 2, 3), np.uint8), {}, "must be a list of images, got ndarray"),
        (None, {}, "must be a list of images, got NoneType"),
        ([b"a", None], {}, r"'images\[1\]' must be str .*, got NoneType"),
        (["a"], {"params": []}, "'params' must be an object, got list"),
        (["a"], {"timeout_s": math.nan}, "timeout_s must be a number of seconds"),
    ],
    ids=["text", "array", "none", "no image", "params", "NaN"],
)
async def test_wrong_arguments_of_a_call_by_handle(ingress, images, more, said):
    """One clear error, as over HTTP, instead of one image per letter or Python's own."""
    with pytest.raises(InvalidRequest, match=said):
        await ingress.score(images, **more)


async def test_params_may_be_any_mapping(ingress):
    """As the signature of `score` says."""
    assert await ingress.score([], MappingProxyType({"decimals": 3})) == []


async def test_a_request_without_images_counts_nothing(ingress):
    """Nothing to refuse, nothing to count: Ray's counters raise on a 0."""
    assert await score(ingress, []) == []


async def test_live_settings_change_in_a_running_ingress(ingress):
    """Thresholds, refusals and bounds follow `user_config`; without it they are those of the start again."""
    with ingress._graph.admission.admitted(["image"] * 4, ingress.context()):
        ingress.reconfigure(
            {
                "detector": {"score_threshold": 0.7},
                "polygonizer": {"decimals": None},
                "ingress": {"retry_after_s": 30, "max_images_in_flight": 5, "timeout_s": 7},
            }
        )
        options = ingress.score_options(ScoreParams(), answer_format="json")
        assert (options.detect.score_threshold, options.outline.decimals) == (0.7, None)
        assert 30 <= ingress.refusal().retry_after_s <= 45
        assert "max_bodies_mb" in ingress.refusal().message
        assert 6 < ingress.context().remaining_s <= 7
        ingress.check_room()
        ingress.reconfigure(None)
        assert ingress.score_options(ScoreParams(), answer_format="json").detect.score_threshold == 0.3
        with pytest.raises(Overloaded):
            ingress.check_room()


@pytest.mark.parametrize(
    ("user_config", "place"),
    [
        ({"detector": {"max_batch": 4}}, r"user_config\.detector: max_batch cannot change in running replicas"),
        ({"ingress": {"max_imges": 4}}, r"user_config\.ingress: unknown key\(s\) max_imges\. Live settings: "),
        ({"image_loader": {"threads": 4}}, r"user_config\.image_loader: expected one of the sections"),
        ({"ingress": {"retry_after_s": 0}}, r"user_config\.ingress\.retry_after_s: .*greater than or equal to 1"),
        ({"ingress": {"max_images_in_flight": 1}}, "largest request could never be served"),
        (["retry_after_s"], "expected sections"),
    ],
)
async def test_a_wrong_user_config_stops_only_new_replicas(ingress, user_config, place, caplog):
    """A running one keeps the previous settings and logs why: Ray stops replicas whose `reconfigure` raises."""
    with pytest.raises(ConfigurationError, match=place):
        ingress.reconfigure(user_config)
    ingress.reconfigure({"detector": {"score_threshold": 0.7}})
    before = ingress.settings
    with caplog.at_level(logging.ERROR, "ray.serve"):
        ingress.reconfigure(user_config)
    assert ingress.settings is before
    assert re.search(place, caplog.text)


@pytest.mark.parametrize("stage", [Detector, ImageLoader, Polygonizer])
def test_a_user_config_of_a_stage_stops_only_new_replicas(stage, caplog):
    """Only the Ingress takes one."""
    replica = object.__new__(stage.func_or_class)
    with pytest.raises(ConfigurationError, match="only the Ingress takes a user_config"):
        replica.reconfigure({"score_threshold": 0.5}, rank=0)
    replica.reconfigure(None, rank=0)
    with caplog.at_level(logging.ERROR, "ray.serve"):
        replica.reconfigure({"score_threshold": 0.5}, rank=0)
    assert "only the Ingress takes a user_config" in caplog.text
