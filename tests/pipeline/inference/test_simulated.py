"""The simulated accelerator: its stated time, plausible answers, the same refusals, and never by accident."""

import time

import numpy as np
import pytest

from deployments.settings import EMBEDDED_MODEL
from pipeline.errors import ConfigurationError, ShapeError
from pipeline.inference.create import create_engine, load_engine
from pipeline.inference.devices import choose_kind
from pipeline.inference.engine import EngineOptions, SimulatedStep
from pipeline.types import DetectOptions
from tests.support.seeded import loaded_photo, seeded_checkpoint

STEP = SimulatedStep(base_ms=20, per_image_ms=10, instances=6)


@pytest.fixture
def engine():
    made = load_engine(EMBEDDED_MODEL, EngineOptions("simulated", max_batch=4, simulated=STEP))
    yield made
    made.close()


def test_a_pass_takes_the_stated_time_and_no_cpu(engine):
    """Four images: 20 + 4 x 10 ms on the clock, hardly any of it computed."""
    images, options = [loaded_photo((480, 640), size=engine.info.input_size)] * 4, [DetectOptions()] * 4
    engine.detect(images, options)  # makes the ellipses
    began, cpu = time.perf_counter(), time.thread_time()
    engine.detect(images, options)
    assert time.perf_counter() - began >= 0.060
    assert time.thread_time() - cpu < 0.030


def test_masks_fill_their_boxes(engine):
    """Every instance lies in the image, and its mask's extent is its box to a cell or so."""
    found = engine.detect([loaded_photo((300, 500), size=engine.info.input_size)], [DetectOptions()])[0]
    assert len(found) == STEP.instances
    assert found.boxes.min() >= 0
    assert (found.boxes.max(axis=0) <= [500, 300, 500, 300]).all()
    grid_h, grid_w = found.letterbox.mask_grid_hw
    for box, logits in zip(found.boxes, found.mask_logits, strict=True):
        rows, columns = np.nonzero(logits > 0)
        extent = np.array([columns.min() / grid_w, rows.min() / grid_h, (columns.max() + 1) / grid_w, (rows.max() + 1) / grid_h])
        np.testing.assert_allclose(extent, box / [500, 300, 500, 300], atol=0.05)


def test_options_count(engine):
    """Threshold, number and labels keep what they keep of any engine."""
    images = [loaded_photo((480, 640), size=engine.info.input_size)] * 3
    high, few, none = engine.detect(
        images, [DetectOptions(0.9), DetectOptions(max_detections=2), DetectOptions(labels=frozenset())]
    )
    assert (high.scores > 0.9).all()
    assert len(high) < STEP.instances
    assert len(few) == 2
    assert len(none) == 0


def test_wrong_size_is_refused(engine):
    """An image that was made for another input size."""
    image = loaded_photo((64, 64), size=engine.info.input_size // 2)
    with pytest.raises(ShapeError):
        engine.detect([image], [DetectOptions()])


def test_it_says_what_it_is(engine):
    """/info reports that it is simulated."""
    assert (engine.info.engine, engine.info.device, engine.info.precision) == ("simulated", "simulated", "none")


def test_auto_never_chooses_it():
    """Only its name does, and it runs no checkpoint's weights."""
    assert choose_kind(EngineOptions()) != "simulated"
    with pytest.raises(ConfigurationError, match="simulated"):
        create_engine(seeded_checkpoint("nano"), EngineOptions("simulated"))
