"""The CUDA engine without a GPU: its streams, events and graphs pretended, everything else real, against the torch engine.

What a GPU computes is tested by test_engine_on_gpu.py; here it is who waits for whom, what goes where, and the way out of bounds.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import EngineLost, EngineOutOfMemory, EngineUnavailable
from pipeline.inference.base import mapped_errors
from pipeline.inference.cuda import engine as cuda_engine
from pipeline.inference.cuda.engine import CudaEngine
from pipeline.inference.cuda.graphs import default_buckets
from pipeline.inference.cuda.postprocess import suppress_in_passes
from pipeline.inference.cuda.slots import SLOTS, Slot, Slots
from pipeline.inference.engine import EngineOptions
from pipeline.inference.mask_head import packed_mask_logits
from pipeline.inference.torch_engine import TorchEngine
from pipeline.types import DetectOptions, Instances, LoadedImage
from tests.support.seeded import loaded_photo, seeded_checkpoint

MAX_BATCH = 4
LOW = DetectOptions(0.05)
OPTIONS = EngineOptions("torch", "fp32", "cpu", threads=1, max_batch=MAX_BATCH)
SHAPES_HW = [(480, 640), (100, 1000), (300, 200), (64, 64)]


class Quiet:
    """A stream or an event: all that it orders is done already."""

    def __init__(self, *_args: object, **_options: object) -> None: ...

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class Graph:
    """Replays by computing again, into the same tensors."""

    replays = 0

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None
        self.outputs: tuple[torch.Tensor, ...] = ()

    def pool(self) -> str:
        return "memory of the graphs"

    def replay(self) -> None:
        Graph.replays += 1
        self.again()


class FakeGpu:
    """Pretends in `torch.cuda` what the engine uses of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing: Graph | None = None
        self.recording = threading.Lock()
        real_empty = torch.empty

        def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:  # noqa: ARG001  (there is nothing to pin)
            return real_empty(*shape, **options)

        for name, pretended in {
            "Stream": Quiet,
            "Event": Quiet,
            "CUDAGraph": Graph,
            "graph": self._graph,
            "stream": lambda _: nullcontext(),
            "device": lambda _: nullcontext(),
            "current_stream": Quiet,
            "set_stream": lambda _: None,
            "synchronize": lambda _: None,
            "get_device_name": lambda _: "a GPU that is none",
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, pretended)
        monkeypatch.setattr(torch, "empty", empty)

    def engine(self, options: EngineOptions = OPTIONS) -> CudaEngine:
        """On the CPU, with this GPU's graphs."""
        engine = CudaEngine(seeded_checkpoint("nano"), options, torch.device("cpu"))
        compute = engine._graphs._compute

        def computed(pixels: torch.Tensor, image_options: torch.Tensor) -> Any:
            raw, results = compute(pixels, image_options)
            if self.capturing is not None:
                self.capturing.outputs = (*raw, *results)
                self.capturing.again = lambda: self._again(compute, pixels, image_options, (*raw, *results))
            return raw, results

        engine._graphs._compute = computed
        return engine

    @staticmethod
    def _again(compute: Any, pixels: torch.Tensor, image_options: torch.Tensor, outputs: tuple[torch.Tensor, ...]) -> None:
        raw, results = compute(pixels, image_options)
        for output, fresh in zip(outputs, (*raw, *results), strict=True):
            output.copy_(fresh)

    @contextmanager
    def _graph(self, graph: Graph, **_options: object) -> Iterator[None]:
        assert self.recording.acquire(blocking=False), "two graphs are recorded at the same time"
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None
            self.recording.release()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


@pytest.fixture(scope="module")
def images() -> list[LoadedImage]:
    return [loaded_photo(hw, seed) for seed, hw in enumerate(SHAPES_HW)]


@pytest.fixture(scope="module")
def expected(images: list[LoadedImage]) -> Callable[[DetectOptions], list[Instances]]:
    """What the torch engine finds in each image, by options."""
    engine, found = TorchEngine(seeded_checkpoint("nano"), OPTIONS), {}

    def look_up(options: DetectOptions) -> list[Instances]:
        if options not in found:
            found[options] = [engine.detect([image], [options])[0] for image in images]
        return found[options]

    return look_up


def assert_same(one: Instances, other: Instances) -> None:
    """Equal but for the last bits of convolutions of another batch size."""
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
    assert np.mean((one.mask_logits > 0) == (other.mask_logits > 0)) > 0.999


def test_batches_of_every_size_in_any_order(gpu, images, expected):
    """Padded up to the next recorded size, each image's result is its own."""
    engine = gpu.engine()
    engine.warm_up()
    order, all_found = random.Random(0), []
    for count in order.sample(range(1, MAX_BATCH + 1), MAX_BATCH) * 2:
        places = order.sample(range(MAX_BATCH), count)
        all_found += zip(places, engine.detect([images[place] for place in places], [LOW] * count), strict=True)
    for place, one in all_found:  # nothing of a slot's memory, which later batches filled
        assert_same(one, expected(LOW)[place])
        assert one.mask_logits.flags.c_contiguous
    engine.close()
    engine.close()


def test_what_is_out_of_bounds_goes_the_other_way(gpu, images, expected):
    """More than 100 instances, or more candidates than a graph looks at; the image beside them does not, and all are right."""
    engine = gpu.engine()
    options = [LOW, DetectOptions(0.0, 100), DetectOptions(0.0, 300), DetectOptions(0.05, 3)]
    engine.warm_up()
    Graph.replays = 0
    found = engine.detect(images, options)
    assert Graph.replays == 2
    assert [len(one) for one in found[1:]] == [len(expected(options[1])[1]), len(expected(options[2])[2]), 3]
    for place, one in enumerate(found):
        assert_same(one, expected(options[place])[place])
    Graph.replays = 0
    engine.detect(images, [LOW] * MAX_BATCH)
    assert Graph.replays == 1


def test_two_callers_share_slots_and_graphs(gpu, images, expected):
    """Without a warm-up, too: graphs are recorded one at a time, while the other caller waits."""
    engine = gpu.engine()
    rooms: list[int] = []
    engine._on_capacity = rooms.append

    def call(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(6):
            places = order.sample(range(MAX_BATCH), order.randint(1, MAX_BATCH))
            found = engine.detect([images[place] for place in places], [LOW] * len(places))
            for place, one in zip(places, found, strict=True):
                assert_same(one, expected(LOW)[place])

    with ThreadPoolExecutor(SLOTS + 1) as callers:
        for result in [callers.submit(call, seed) for seed in range(SLOTS + 1)]:
            result.result(timeout=120)
    assert rooms == [MAX_BATCH] * 6 * (SLOTS + 1)


def test_a_failed_batch_leaves_everything_in_its_place(gpu, images, expected, monkeypatch):
    """After one out-of-memory error, slots and lock are free again, and the next batch is correct."""
    engine = gpu.engine()
    engine.warm_up()
    failures = iter([RuntimeError("CUDA error: CUDA_ERROR_OUT_OF_MEMORY: the API call failed")] * (SLOTS + 1))
    run = engine._graphs.run

    def fail_first(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return run(*args)

    monkeypatch.setattr(engine._graphs, "run", fail_first)
    for _ in range(SLOTS + 1):
        with pytest.raises(EngineOutOfMemory, match="batch of 2"):
            engine.detect(images[:2], [LOW] * 2)
    assert_same(engine.detect(images[:1], [LOW])[0], expected(LOW)[0])


def test_a_slot_that_does_not_fit_is_not_lost(gpu, images, expected, monkeypatch):
    """The warm-up creates all slots and fails; once there is memory, no call waits for the missing slot."""
    engine = gpu.engine()
    make, failures = engine._graphs.slot, iter([RuntimeError("CUDA out of memory")] * SLOTS)

    def fail_first() -> Any:
        for failure in failures:
            raise failure
        return make()

    monkeypatch.setattr(engine._graphs, "slot", fail_first)
    for _ in range(SLOTS):
        with pytest.raises(EngineOutOfMemory):
            engine.warm_up()
    engine.warm_up()
    assert_same(engine.detect(images[:1], [LOW])[0], expected(LOW)[0])


@pytest.mark.parametrize("kernels", [None, SimpleNamespace(greedy_nms=suppress_in_passes, packed_mask_logits=packed_mask_logits)])
def test_info_says_what_is_in_use(kernels, gpu, monkeypatch):
    """The kernels, if they passed their test, and the graphs, if all could be recorded."""
    monkeypatch.setattr(cuda_engine, "with_kernels", lambda network, *_: (network, kernels))
    engine = gpu.engine()
    engine.warm_up()
    engine.warm_up()
    assert engine.info.optimizations == (*(["cuda_kernels"] if kernels else []), "cuda_graphs")


@pytest.mark.parametrize("failing", [(0,), (1, 2), (0, 1, 2)], ids=["the largest", "the others", "all"])
def test_sizes_whose_graph_cannot_be_recorded_run_without(failing, gpu, images, expected, monkeypatch, caplog):
    """If a capture fails, those sizes run without a graph, with a warning, and all results are correct."""
    real, number = torch.cuda.graph, itertools.count()

    @contextmanager
    def graph(*args: Any, **options: Any) -> Iterator[None]:
        with real(*args, **options):
            yield
        if next(number) in failing:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    engine = gpu.engine()
    with caplog.at_level(logging.WARNING):
        engine.warm_up()
    assert caplog.text.count("no CUDA graph for batches of") == len(failing)
    assert engine.info.optimizations == ()
    for places in ([0], [1, 2], [3, 0, 1], [2, 3, 1, 0], [1]):
        for place, one in zip(places, engine.detect([images[n] for n in places], [LOW] * len(places)), strict=True):
            assert_same(one, expected(LOW)[place])


@pytest.mark.parametrize("missing", ["network", "post-processing"])
def test_a_graph_that_computes_something_else_is_not_used(missing, gpu, images, expected, monkeypatch, caplog):
    """As if kernels had been started on a stream that was not recorded: the log says so, and results are correct without a graph."""
    replay = Graph.replay

    def partly(graph: Graph) -> None:
        outputs = graph.outputs[:4] if missing == "network" else graph.outputs[4:]
        before = [output.clone() for output in outputs]
        replay(graph)
        for output, old in zip(outputs, before, strict=True):
            output.copy_(old)

    monkeypatch.setattr(Graph, "replay", partly)
    engine = gpu.engine()
    with caplog.at_level(logging.WARNING):
        engine.warm_up()
    assert caplog.text.count("off by") == len(default_buckets(MAX_BATCH))
    for place, one in enumerate(engine.detect(images, [LOW] * MAX_BATCH)):
        assert_same(one, expected(LOW)[place])


def test_a_gpu_that_is_lost_while_recording_is_reported(gpu, monkeypatch):
    """The engine cannot run on it at all."""

    def fail(*_: object, **_options: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(EngineLost):
        gpu.engine().warm_up()


def test_a_gpu_without_bf16_is_reported(monkeypatch):
    """PyTorch says that it has it, and its convolutions fail."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(EngineUnavailable, match="Tesla T4 cannot compute in bf16"):
        CudaEngine(seeded_checkpoint("nano"), EngineOptions("torch", "bf16"), torch.device("cuda", 0))


def test_a_gpu_that_this_pytorch_has_no_code_for_is_reported(gpu, monkeypatch):
    """Before anything else runs on it; PyTorch lists it, and only the first kernel fails."""

    def fail(*_: object, **_options: object) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch, "ones", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(
        EngineUnavailable, match=r"\(sm_70\) is not usable: CUDA error: no kernel image .* device\. .*sm_75, sm_90"
    ):
        gpu.engine()


@pytest.mark.parametrize("step", ["the network", "recording", "slots", "a full batch"])
def test_what_does_not_fit_at_the_start_is_reported_with_remedies(step, gpu, monkeypatch):
    """Wherever memory runs out."""

    def fail(*_: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if step == "the network":
        monkeypatch.setattr(cuda_engine, "PostProcessor", fail)
    else:
        owner, name = {"recording": (torch.cuda, "graph"), "slots": (Slots, "fill"), "a full batch": (Slot, "upload")}[step]
        monkeypatch.setattr(owner, name, fail)
    with pytest.raises(EngineOutOfMemory, match=r"2\.00 GiB.*lower detector\.max_batch, now 4, or .*num_gpus: 1"):
        gpu.engine().warm_up()


@pytest.mark.parametrize(("free", "kind"), [(1, EngineOutOfMemory), (90, RuntimeError)])
def test_cudnn_without_memory_finds_no_algorithm(free, kind, monkeypatch):
    """The error has no reason; it counts as out of memory if the GPU is full."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    with pytest.raises(kind), mapped_errors(4):
        raise RuntimeError("GET was unable to find an engine to execute this computation")


def test_a_lost_gpu_does_not_hide_cudnns_error(monkeypatch):
    """Its memory cannot be looked at either."""

    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with pytest.raises(RuntimeError, match="unable to find an engine"), mapped_errors(4):
        raise RuntimeError("GET was unable to find an engine to execute this computation")


def test_cudnns_switches_are_put_back(gpu):
    """They belong to the process, and another engine in it may want others."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    engine = gpu.engine()
    engine.warm_up()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == before
    engine.close()
