"""The Polygonizer's answers: typed, as JSON, or drawn on the photo."""

import asyncio
import io
import threading
import time

import numpy as np
import orjson
import pytest
from PIL import Image

from deployments.polygonizer import Polygonizer
from deployments.settings import PolygonizerSettings
from deployments.task import ImageTask, RequestContext, ScoreOptions
from pipeline.types import DetectOptions, Instances, Letterbox, OutlineOptions

GREY = (90, 90, 90)


@pytest.fixture
def polygonizer():
    return Polygonizer.func_or_class(("person",), PolygonizerSettings())


def one_square() -> Instances:
    """In the middle of a photo of 320 x 240 pixels."""
    letterbox = Letterbox((240, 320), (240, 320), 320)
    logits = np.full((1, *letterbox.mask_grid_hw), -5, np.float16)
    logits[0, 10:20, 10:30] = 5
    box = np.array([[80, 80, 240, 160]], np.float32)
    return Instances(box, np.array([0.9], np.float32), np.array([0]), logits, letterbox)


async def answer_of(polygonizer, file_format):
    options = ScoreOptions(DetectOptions(), OutlineOptions(), answer_format=file_format)
    photo = np.full((240, 320, 3), GREY, np.uint8) if options.draws else None
    task = ImageTask(one_square(), options, RequestContext("test", time.time() + 10), {"detect": 1.0}, photo)
    (answer,) = await polygonizer.outline([task])
    assert set(answer.timings_ms) == {"detect", "polygonize"}
    return answer


async def test_answers_in_the_form_that_was_asked_for(polygonizer):
    objects, encoded = await answer_of(polygonizer, "objects"), await answer_of(polygonizer, "json")
    assert [item.label for item in objects.objects] == ["person"]
    assert orjson.loads(encoded.json)["boxes"][0]["label"] == "person"


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
async def test_a_picture_is_the_photo_with_its_objects(polygonizer, file_format):
    """An image file of the photo's size: tinted inside, untouched outside."""
    drawn = await answer_of(polygonizer, file_format)
    assert drawn.media_type == f"image/{file_format}"
    picture = Image.open(io.BytesIO(drawn.data))
    assert (picture.format, picture.size) == (file_format.upper(), (320, 240))
    assert max(abs(a - b) for a, b in zip(picture.getpixel((10, 230)), GREY, strict=True)) < 4
    assert max(abs(a - b) for a, b in zip(picture.getpixel((160, 120)), GREY, strict=True)) > 20


async def test_labels_are_those_of_the_network_that_ran(polygonizer):
    """While a service changes its model, a Detector of the new one may send to a Polygonizer of the old one."""
    options = ScoreOptions(DetectOptions(), OutlineOptions())
    task = ImageTask(one_square(), options, RequestContext("r", time.time() + 60), classes=("ball", "egg"))
    (answer,) = await polygonizer.outline([task])
    assert [item.label for item in answer.objects] == ["ball"]


async def test_an_image_does_not_wait_for_all_those_of_another_caller(polygonizer, monkeypatch):
    """There is one thread. While it works, a call with four images of one caller comes, then one of another, which is next but one."""
    gate, done = threading.Event(), []

    def outline(_instances, classes, _options):
        assert gate.wait(5)
        done.append(classes[0])
        return []

    monkeypatch.setattr("deployments.polygonizer.instances_to_objects", outline)

    def task(caller):
        context = RequestContext("test", time.time() + 10, caller)
        return ImageTask(one_square(), ScoreOptions(DetectOptions(), OutlineOptions()), context, classes=(caller,))

    calls = [asyncio.create_task(polygonizer.outline([task("loud")] * 4))]
    await asyncio.sleep(0.01)
    calls.append(asyncio.create_task(polygonizer.outline([task("polite")])))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*calls)
    assert done == ["loud", "polite", "loud", "loud", "loud"]
