"""The Detector without Ray: on which device it runs, and what it does when that fails."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest

from deployments.detector import HUNG_S, HUNG_S_AN_IMAGE, MEASURED_BATCHES, Detector, hung_after_s, on_granted_device
from pipeline.errors import EngineLost
from pipeline.inference.engine import EngineOptions


@pytest.mark.parametrize(
    ("kind", "device", "cards", "expected"),
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
def test_auto_is_the_card_that_ray_granted(kind, device, cards, expected):
    """Never a GPU that was not granted; a device given by name stays."""
    assert on_granted_device(EngineOptions(kind, device=device), cards).device == expected


async def test_a_detector_that_lost_its_card_says_so():
    """Healthy until then; afterwards Ray replaces the replica."""

    def detect(*_):
        raise EngineLost("the card failed")

    detector = object.__new__(Detector.func_or_class)
    detector._engine, detector._lost = SimpleNamespace(detect=detect, info=SimpleNamespace(max_batch=8)), None
    detector._batcher, detector._ran_s = SimpleNamespace(running_s=1.0), deque()
    await detector.check_health()
    with pytest.raises(EngineLost):
        detector._run([("image", "options")])
    with pytest.raises(EngineLost):
        await detector.check_health()


async def test_a_detector_whose_card_hangs_says_so():
    """It fails no batch but never finishes one."""
    detector = object.__new__(Detector.func_or_class)
    detector._lost, detector._engine = None, SimpleNamespace(info=SimpleNamespace(max_batch=10))
    detector._ran_s = deque()
    detector._batcher = SimpleNamespace(running_s=HUNG_S + 10 * HUNG_S_AN_IMAGE - 1)
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
    ids=["nothing measured", "too little measured", "a fast card", "one slow batch", "slow batches"],
)
def test_when_a_batch_counts_as_hung(ran_s, expected_s):
    """Twenty times the slowest of the last batches: a card that needs 50 ms is given up after 30 s, not after 248."""
    assert hung_after_s(32, ran_s) == expected_s


async def test_batch_times_are_measured():
    """What the engine took is what the limit follows."""
    detector = object.__new__(Detector.func_or_class)
    detector._lost, detector._ran_s = None, deque([0.01] * (MEASURED_BATCHES - 1), MEASURED_BATCHES)
    detector._engine = SimpleNamespace(detect=lambda images, _: images, info=SimpleNamespace(max_batch=32))
    detector._batcher = SimpleNamespace(running_s=31.0)
    await detector.check_health()
    assert detector._run([("image", "options")]) == ("image",)
    with pytest.raises(EngineLost, match="more than 30 s"):
        await detector.check_health()
