"""The Detector without Ray: on which device it runs, and what it does when that fails."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from deployments import detector as detector_module
from deployments.detector import (
    HUNG_S,
    HUNG_S_PER_IMAGE,
    MEASURED_BATCHES,
    Detector,
    fair_batch,
    hung_after_s,
    max_per_caller,
    on_granted_device,
)
from deployments.settings import DetectorSettings, ModelSettings
from deployments.stages.stage import StageRunner
from deployments.task import ImageTask, RequestContext, ScoreOptions
from pipeline.errors import EngineLost
from pipeline.inference.engine import EngineInfo, EngineOptions
from pipeline.types import DetectOptions, Letterbox, LoadedImage, OutlineOptions


@pytest.mark.parametrize(
    ("kind", "device", "gpus", "expected"),
    [
        ("auto", "auto", 1, "cuda"),
        ("torch", "auto", 1, "cuda"),
        ("auto", "auto", 0, "cpu"),
        ("torch", "auto", 0, "cpu"),
        ("auto", "cuda:1", 0, "cuda:1"),
        ("auto", "cpu", 1, "cpu"),
        ("openvino", "auto", 1, "auto"),
        ("simulated", "auto", 1, "auto"),
    ],
)
def test_auto_is_the_gpu_that_ray_granted(kind, device, gpus, expected):
    """Never a GPU that was not granted; a device given by name stays."""
    assert on_granted_device(EngineOptions(kind, device=device), gpus).device == expected


@pytest.mark.parametrize(
    ("engine", "threads", "fair"), [("openvino", 2, 2), ("openvino", 32, 8), ("torch", 4, 8), ("simulated", 2, 8)]
)
def test_batches_are_short_only_where_that_is_as_fast(engine, threads, fair):
    """OpenVINO runs an image a thread; a GPU needs large batches, also with several callers."""
    assert fair_batch(EngineInfo("m", ("person",), 640, engine, "bf16", "cpu", threads, 8)) == fair


@pytest.mark.parametrize(
    ("engine", "threads", "most"), [("openvino", 2, 1), ("openvino", 32, 7), ("openvino", 1, 1), ("torch", 4, None)]
)
def test_a_thread_is_kept_for_other_callers_only_where_it_is_not_lost(engine, threads, most):
    """While several callers are here, nobody has all of OpenVINO's streams; on a GPU nothing is kept."""
    assert max_per_caller(EngineInfo("m", ("person",), 640, engine, "bf16", "cpu", threads, 8)) == most


def lose(*_):
    """A `detect` of a GPU that failed."""
    raise EngineLost("the GPU failed")


async def test_a_detector_that_lost_its_gpu_says_so():
    """In an Ingress replica: healthy until then; afterwards Ray replaces the replica."""
    detector = object.__new__(Detector.func_or_class)
    detector._ends_when_lost = False
    detector._engine, detector._lost = SimpleNamespace(info=SimpleNamespace(max_batch=8)), None
    detector._batcher, detector._ran_s = SimpleNamespace(running_s=1.0), deque()
    await detector.check_health()
    with pytest.raises(EngineLost):
        detector._run(lose, [("image", "options")])
    with pytest.raises(EngineLost):
        await detector.check_health()


def test_a_replica_that_lost_its_gpu_ends(monkeypatch):
    """It does not answer: until Ray had replaced it, it would fail most calls, because it looks idle."""
    ended = []
    monkeypatch.setattr(detector_module, "end_process", lambda error, _: ended.append(error))
    detector = object.__new__(Detector.func_or_class)
    detector._ends_when_lost, detector._ran_s = True, deque()
    with pytest.raises(EngineLost) as caught:
        detector._run(lose, [("image", "options")])
    assert ended == [caught.value]


@pytest.mark.parametrize(("deployment", "ends"), [("Detector", True), ("Ingress", False)])
def test_which_replicas_end_with_their_gpu(deployment, ends, monkeypatch):
    """Not an Ingress (`layout: together`): it holds requests."""
    context = SimpleNamespace(deployment=deployment, _deployment_config=SimpleNamespace(max_ongoing_requests=64))
    monkeypatch.setattr(detector_module.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(detector_module, "_granted_gpus", lambda: 0)
    settings = DetectorSettings(engine="simulated", simulated={"base_ms": 0, "per_image_ms": 0})
    assert Detector.func_or_class(ModelSettings(), settings)._ends_when_lost == ends


async def test_a_detector_whose_gpu_hangs_says_so():
    """It fails no batch but never finishes one."""
    detector = object.__new__(Detector.func_or_class)
    detector._lost, detector._engine = None, SimpleNamespace(info=SimpleNamespace(max_batch=10))
    detector._ran_s = deque()
    detector._batcher = SimpleNamespace(running_s=HUNG_S + 10 * HUNG_S_PER_IMAGE - 1)
    await detector.check_health()
    detector._batcher.running_s += 2
    with pytest.raises(EngineLost, match="running for more than"):
        await detector.check_health()


@pytest.mark.parametrize(
    ("ran_s", "expected_s"),
    [
        ([], 120 + 4 * 32),
        ([0.05] * (MEASURED_BATCHES - 1), 120 + 4 * 32),
        ([0.05] * MEASURED_BATCHES, 30),
        ([0.05] * (MEASURED_BATCHES - 1) + [4.0], 80),
        ([30.0] * MEASURED_BATCHES, 120 + 4 * 32),
    ],
    ids=["nothing measured", "too little measured", "a fast GPU", "one slow batch", "slow batches"],
)
def test_when_a_batch_counts_as_hung(ran_s, expected_s):
    """Twenty times the slowest of the last batches: a GPU that needs 50 ms is given up after 30 s, not after 248."""
    assert hung_after_s(32, ran_s) == expected_s


@pytest.mark.parametrize(
    ("labels", "indices"),
    [(None, None), (["cat", "bird"], {0, 2}), (["gone"], set()), ([], set())],
    ids=["all", "two of three", "a label of another model", "none"],
)
async def test_wanted_labels_are_indices_of_this_detectors_model(labels, indices):
    """The Ingress sends names: while the service changes its model, its own order of classes may be another."""
    asked = []

    async def submit(item, **_):
        asked.append(item[1])
        return SimpleNamespace(wait_s=0.0, run_s=0.0, result="instances")

    detector = object.__new__(Detector.func_or_class)
    detector._engine = SimpleNamespace(info=SimpleNamespace(classes=("cat", "dog", "bird"), input_size=64))
    detector._batcher, detector._stage = SimpleNamespace(submit=submit), StageRunner("detector")
    wanted = None if labels is None else frozenset(labels)
    image = LoadedImage(np.zeros((48, 64, 3), np.uint8), Letterbox((48, 64), (48, 64), 64))
    task = ImageTask(image, ScoreOptions(DetectOptions(0.2), OutlineOptions(), wanted), RequestContext("r", time.time() + 9))
    (done,) = await detector.detect([task])
    assert done.payload == "instances"
    assert asked == [DetectOptions(0.2, labels=indices)]


async def test_batch_times_are_measured():
    """What the engine took is what the limit follows."""
    detector = object.__new__(Detector.func_or_class)
    detector._lost, detector._ran_s = None, deque([0.01] * (MEASURED_BATCHES - 1), MEASURED_BATCHES)
    detector._engine = SimpleNamespace(info=SimpleNamespace(max_batch=32))
    detector._batcher = SimpleNamespace(running_s=31.0)
    await detector.check_health()
    assert detector._run(lambda images, _: images, [("image", "options")]) == ("image",)
    with pytest.raises(EngineLost, match="more than 30 s"):
        await detector.check_health()
