"""The CUDA engine on a GPU: right, and the same for every batch and thread. Skipped without a GPU.

pytest --cuda    (these and all other tests marked `cuda`; see tests/conftest.py)
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.inference.create import create_engine
from pipeline.inference.engine import Engine, EngineOptions
from pipeline.types import DetectOptions, Instances, LoadedImage
from tests.support.seeded import loaded_photo, seeded_checkpoint

pytestmark = pytest.mark.cuda
MAX_BATCH = 8
SHAPES_HW = [(480, 640), (100, 1000), (300, 200)]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Engine]:
    """Float32 on the GPU; the engine turns TF32 off."""
    engine = make("fp32", "cuda")
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch belongs to the process: an engine in half precision turns it on for all."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def images() -> list[LoadedImage]:
    """One for each place in the largest batch, in three shapes."""
    return [loaded_photo(hw, seed) for seed, hw in enumerate((SHAPES_HW * 3)[:MAX_BATCH])]


@pytest.fixture(scope="module")
def alone(gpu: Engine, images: list[LoadedImage]) -> list[Instances]:
    """The result of each image alone."""
    return [detect(gpu, [image])[0] for image in images]


def make(precision: str, device: str) -> Engine:
    engine = create_engine(seeded_checkpoint("tiny"), EngineOptions("torch", precision, device, max_batch=MAX_BATCH))
    engine.warm_up()
    return engine


def detect(engine: Engine, images: Sequence[LoadedImage]) -> list[Instances]:
    return engine.detect(images, [DetectOptions(0.05)] * len(images))


def assert_same(one: Instances, other: Instances) -> None:
    """The same instances: labels, scores within 0.001, boxes within half a pixel, masks.

    cuDNN takes another algorithm for another batch size or GPU, and its rounding may swap two instances of nearly equal score
    or move one over a threshold. So each is compared with its nearest, and three in a hundred may have none.
    """
    apart_px = np.abs(one.boxes[:, None] - other.boxes[None]).max(-1)
    apart_px[one.labels[:, None] != other.labels[None]] = np.inf
    nearest = apart_px.argmin(1)
    found = (apart_px.min(1) < 0.5) & (np.abs(one.scores - other.scores[nearest]) < 1e-3)
    assert len(one) > 20
    assert abs(len(one) - len(other)) <= 0.03 * len(one)
    assert found.mean() >= 0.97
    assert np.mean((one.mask_logits[found] > 0) == (other.mask_logits[nearest[found]] > 0)) > 0.999


def test_fp32_agrees_with_the_cpu(gpu, images):
    """In one batch of three shapes."""
    for one, other in zip(detect(gpu, images), detect(make("fp32", "cpu"), images), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_near(precision, alone, images):
    """Scores of the best instances move by little, and the masks of those that are found again."""
    engine = make(precision, "cuda")
    for rough, precise in zip(detect(engine, images), alone, strict=True):
        np.testing.assert_allclose(rough.scores[:5], precise.scores[:5], atol=0.05)
        apart_px = np.abs(rough.boxes[:, None] - precise.boxes[None]).max(-1)
        found, nearest = apart_px.min(1) < 2, apart_px.argmin(1)
        assert found.mean() > 0.5
        assert np.mean((rough.mask_logits[found] > 0) == (precise.mask_logits[nearest[found]] > 0)) > 0.98
    engine.close()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_kernels_and_graphs_are_used(precision, caplog):
    """Everything has a slower way out, with a warning; on a GPU that works none is taken."""
    pytest.importorskip("cuda.core")
    with caplog.at_level(logging.WARNING):
        make(precision, "cuda").close()
    assert not caplog.records


def test_auto_is_fp16_on_the_first_gpu(images):
    """What the service runs where nothing is set."""
    engine = create_engine(seeded_checkpoint("tiny"), EngineOptions(max_batch=1))
    assert (engine.info.engine, engine.info.precision) == ("torch", "fp16")
    assert engine.info.device == torch.cuda.get_device_name(0)
    assert len(detect(engine, images[:1])[0]) > 0
    engine.close()


def test_batches_of_every_size_in_any_order(gpu, images, alone):
    """Each image's result is its own, whatever graph replays it and whatever stood in its place before."""
    with pytest.raises(AssertionError):
        assert_same(alone[0], alone[3])  # two photos of one shape are told apart
    order = random.Random(0)
    for count in order.sample(range(1, MAX_BATCH + 1), MAX_BATCH) * 2:
        places = order.sample(range(MAX_BATCH), count)
        for place, found in zip(places, detect(gpu, [images[place] for place in places]), strict=True):
            assert_same(found, alone[place])


def test_more_candidates_than_a_graph_looks_at(images):
    """Only those images use the general post-processing; they give the same results as on a CPU."""
    options = [DetectOptions(0.05), DetectOptions(0.0, 300), DetectOptions(0.05, 5), DetectOptions(0.001, 100)]
    engines = make("fp32", "cuda"), make("fp32", "cpu")
    for one, other in zip(*(engine.detect(images[:4], options) for engine in engines), strict=True):
        assert abs(len(one) - len(other)) <= 0.03 * len(one)
        np.testing.assert_allclose(one.scores[:5], other.scores[:5], atol=1e-3)
    assert len(engines[0].detect(images[1:2], options[1:2])[0]) > 100
    engines[0].close()


def test_two_threads_keep_their_own_results(gpu, images, alone):
    """Two callers, as in the service: one batch is copied to the GPU while the other is computed."""

    def call(seed: int) -> list[tuple[int, Instances]]:
        order, found = random.Random(seed), []
        for _ in range(50):
            places = order.sample(range(MAX_BATCH), order.randint(1, MAX_BATCH))
            found += zip(places, detect(gpu, [images[place] for place in places]), strict=True)
        return found

    with ThreadPoolExecutor(2) as callers:
        for found in callers.map(call, range(2)):
            for place, one in found:
                assert_same(one, alone[place])
