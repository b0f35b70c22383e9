"""The OpenVINO engine: input shapes, streams, and what happens when a network cannot be compiled."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.letterbox import fitted_input, pad_batch
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.inference.openvino.convert import ConvertedNetwork
from pipeline.inference.openvino.engine import _shares
from pipeline.inference.postprocess import PostProcessor
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions
from tests.support.seeded import SIZE_PX, loaded_photo, seeded_checkpoint

LOW = DetectOptions(0.05)


@pytest.fixture(scope="module")
def two_streams():
    """OpenVINO on two threads, at most five images per pass."""
    engine = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5))
    yield engine
    engine.close()


def test_images_are_scored_on_the_input_that_fits_them(two_streams):
    """Seven images of five shapes in passes of five, against PyTorch on the same input; nothing lies in the padding that was cut off."""
    images = [
        loaded_photo(hw, seed)
        for seed, hw in enumerate([(480, 640), (1080, 1920), (64, 64), (640, 480), (480, 640), (9, 4), (48, 64)])
    ]
    network = RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX)
    inputs = [fitted_input(image.letterbox.scaled_hw, SIZE_PX) for image in images]
    assert len(set(inputs)) == 5
    for image, input_hw, found in zip(images, inputs, two_streams.detect(images, [LOW] * 7), strict=True):
        pixels = torch.from_numpy(pad_batch([image], SIZE_PX, out=np.empty((1, *input_hw, 3), np.uint8)))
        with torch.inference_mode():
            outputs = network(pixels)
        expected = PostProcessor(input_hw, network.kernel_branch)(outputs, [image.letterbox], [LOW])[0]
        assert len(found) > 10
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.001)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5)
        assert np.mean((found.mask_logits > 0) == (expected.mask_logits > 0)) > 0.999


def test_calls_from_several_threads_keep_their_own_results(two_streams):
    """Batches of all sizes at once, each on the streams as they come free, give what each image gives alone."""
    images = [loaded_photo((480, 640), seed) for seed in range(14)]
    alone = [two_streams.detect([image], [LOW])[0] for image in images]
    parts = [slice(0, 5), slice(5, 6), slice(6, 8), slice(8, 11), slice(11, 12), slice(12, 14)]
    with ThreadPoolExecutor(3) as callers:
        found = callers.map(lambda part: two_streams.detect(images[part], [LOW] * (part.stop - part.start)), parts)
        together = [one for batch in found for one in batch]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)


def test_capacity_is_reported_when_a_stream_comes_free(two_streams, monkeypatch):
    """A batch that is spread over the streams tells it; one image on all threads leaves none."""
    told: list[int] = []
    monkeypatch.setattr(two_streams, "_on_capacity", told.append)
    two_streams.detect([loaded_photo((480, 640))], [LOW])
    assert not told
    two_streams.detect([loaded_photo((480, 640))] * 4, [LOW] * 4)
    assert set(told) == {1}


def test_leaving_room_keeps_the_other_stream_free(two_streams, monkeypatch):
    """It is told at once, and another call runs on it meanwhile; results are the same."""
    told: list[int] = []
    monkeypatch.setattr(two_streams, "_on_capacity", told.append)
    image = loaded_photo((480, 640))
    find, free = two_streams._find, []

    def look(stream, *arguments):
        free.append(two_streams._idle.qsize())
        return find(stream, *arguments)

    monkeypatch.setattr(two_streams, "_find", look)
    (found,) = two_streams.detect_leaving_room([image], [LOW])
    assert (free, set(told)) == ([1], {1})
    (usual,) = two_streams.detect([image], [LOW])
    np.testing.assert_allclose(found.scores, usual.scores, atol=1e-4)


def test_compiling_for_one_shape_holds_up_no_other(monkeypatch):
    """An image of a known shape gets its result while another waits for its network."""
    engine = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5))
    square, wide = loaded_photo((640, 640)), loaded_photo((1080, 1920))
    engine.detect([square] * 2, [LOW] * 2)
    begun, allowed = threading.Event(), threading.Event()
    for_one_image = ConvertedNetwork.for_one_image

    def wait_then_convert(self, input_hw):
        begun.set()
        assert allowed.wait(30)
        return for_one_image(self, input_hw)

    monkeypatch.setattr(ConvertedNetwork, "for_one_image", wait_then_convert)
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(engine.detect, [wide], [LOW])
        assert begun.wait(30)
        assert len(engine.detect([square], [LOW])[0]) > 10
        assert len(engine.detect([square] * 3, [LOW] * 3)) == 3
        assert not waiting.done()
        allowed.set()
        assert len(waiting.result()[0]) > 10
    engine.close()


def test_what_cannot_be_compiled_goes_to_the_square(monkeypatch, caplog):
    """With one line in the log, and without the try at every image; a network for no input at all is an error."""
    seen = []

    def fail(_self, input_hw):
        seen.append(input_hw)
        raise RuntimeError("no space left on device")

    options = EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5)
    engine = create_engine(seeded_checkpoint("nano"), options)
    engine.detect([loaded_photo((640, 640))] * 2, [LOW] * 2)
    monkeypatch.setattr(ConvertedNetwork, "for_one_image", fail)
    wide = loaded_photo((1080, 1920))
    with pytest.raises(RuntimeError, match="no space left"):
        create_engine(seeded_checkpoint("nano"), options)
    seen.clear()
    found = [engine.detect([wide], [LOW])[0] for _ in range(3)]
    assert len(seen) == 1
    assert ["such images are padded to" in record.message for record in caplog.records] == [True]
    monkeypatch.undo()
    squares = create_engine(seeded_checkpoint("nano"), replace(options, fitted=False))
    np.testing.assert_allclose(found[2].boxes, squares.detect([wide], [LOW])[0].boxes, atol=0.05)
    for one in (engine, squares):
        one.close()


def test_a_closed_engine_says_so():
    """At every call; none waits for a stream that never comes."""
    engine = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5))
    engine.close()
    engine.close()
    for _ in range(4):
        with pytest.raises(RuntimeError, match="engine is closed"):
            engine.detect([loaded_photo((640, 640))] * 2, [LOW] * 2)


@given(batch=st.integers(1, 40), streams=st.integers(2, 9), idle=st.booleans())
def test_shares_cover_a_batch_once_and_in_order(batch, streams, idle):
    """Equal shares and a remainder for all threads on a quiet engine, shares that differ by one on a busy one."""
    parts, left = _shares(batch, streams, idle=idle)
    assert [image for part in parts for image in range(part.start, part.stop)] + list(left) == list(range(batch))
    lengths = {part.stop - part.start for part in parts}
    assert all(0 < length <= -(-batch // streams) for length in lengths)
    assert len(parts) <= streams
    assert len(lengths) <= (1 if idle else 2)
    assert len(left) < streams if idle else not left


def test_signals_arrive_when_engines_are_gone():
    """Two OpenVINO engines that end in the order they came leave the thread's stack for signals as it was."""
    code = """
import signal
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from tests.support.seeded import seeded_checkpoint

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append("heard"))
engines = [create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32")) for _ in range(2)]
while engines:
    engines.pop(0).close()
signal.raise_signal(signal.SIGUSR1)
print(*heard)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[4]
    )
    assert (done.returncode, done.stdout.strip()) == (0, "heard"), done.stderr
