"""The engines: the same results from each, the right refusals, and how they fail."""

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

from pipeline.errors import CheckpointError, ConfigurationError, EngineLost, EngineOutOfMemory, EngineUnavailable, ShapeError
from pipeline.images.letterbox import fitted_input, pad_batch, scale_to_fit
from pipeline.inference.base import naming_failures
from pipeline.inference.create import create_engine
from pipeline.inference.cuda.graphs import default_buckets
from pipeline.inference.devices import choose_kind, owned_cores
from pipeline.inference.engine import EngineOptions
from pipeline.inference.openvino.convert import ConvertedNetwork
from pipeline.inference.openvino.engine import _shares
from pipeline.inference.postprocess import PostProcessor
from pipeline.inference.torch_engine import Float32Layers
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, LoadedImage
from tests.support.seeded import SIZE_PX, photo, seeded_checkpoint

KINDS = ["openvino", "torch"]
LOW = DetectOptions(0.05)
NO_CARD = "CPU build|PyTorch sees 0 cards"  # by the build of PyTorch; tests/conftest.py hides a card


@pytest.fixture(scope="module")
def engines():
    """Both engines in float32 on mmdet's square, at most four images a pass."""
    options = {kind: EngineOptions(kind, "fp32", "cpu", 1, max_batch=4, fitted=False) for kind in KINDS}
    made = {kind: create_engine(seeded_checkpoint("nano"), options[kind]) for kind in KINDS}
    yield made
    for engine in made.values():
        engine.close()


def load(hw: tuple[int, int], seed: int = 0, size: int = SIZE_PX) -> LoadedImage:
    return scale_to_fit(photo(hw, seed), hw, size)


def test_both_engines_agree(engines):
    """OpenVINO and torch in float32, a batch of three shapes."""
    images = [load((480, 640), 1), load((100, 1000), 2), load((300, 200), 3)]
    for one, other in zip(*(engines[kind].detect(images, [LOW] * 3) for kind in KINDS), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=0.001)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.5)
        assert np.mean((one.mask_logits > 0) == (other.mask_logits > 0)) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_than_fit_go_in_several_passes(engines, kind):
    """Nine images with max_batch 4 give what nine calls give."""
    images = [load((480, 640), seed) for seed in range(9)]
    together = engines[kind].detect(images, [LOW] * 9)
    for image, found in zip(images, together, strict=True):
        alone = engines[kind].detect([image], [LOW])[0]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_results_outlive_the_next_batch(engines, kind):
    """Nothing that is returned points into a buffer that the engine uses again."""
    first = engines[kind].detect([load((480, 640), 1)], [LOW])[0]
    before = first.mask_logits.copy(), first.boxes.copy()
    engines[kind].detect([load((480, 640), 2)] * 4, [LOW] * 4)
    np.testing.assert_array_equal(first.mask_logits, before[0])
    np.testing.assert_array_equal(first.boxes, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near(engines, kind):
    """bf16 moves scores by a little, on the best instances."""
    precise = engines[kind].detect([load((480, 640))], [LOW])[0]
    engine = (
        create_engine(seeded_checkpoint("nano"), EngineOptions(kind, "bf16", "cpu", 1, fitted=False))
        if bf16_here()
        else pytest.skip("no bf16")
    )
    engine.warm_up()
    rough = engine.detect([load((480, 640))], [LOW])[0]
    np.testing.assert_allclose(rough.scores[:5], precise.scores[:5], atol=0.05)
    assert engine.info.precision == "bf16"


def test_images_are_scored_on_the_input_that_fits_them(two_streams):
    """Seven images of five shapes in passes of five, against PyTorch on the same input; nothing lies in the padding that was cut off."""
    images = [
        load(hw, seed) for seed, hw in enumerate([(480, 640), (1080, 1920), (64, 64), (640, 480), (480, 640), (9, 4), (48, 64)])
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


def test_compiling_for_one_shape_holds_up_no_other(monkeypatch):
    """An image of a known shape gets its result while another waits for its network."""
    engine = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5))
    square, wide = load((640, 640)), load((1080, 1920))
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
    engine.detect([load((640, 640))] * 2, [LOW] * 2)
    monkeypatch.setattr(ConvertedNetwork, "for_one_image", fail)
    wide = load((1080, 1920))
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
            engine.detect([load((640, 640))] * 2, [LOW] * 2)


def bf16_here() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


@pytest.fixture(scope="module")
def two_streams():
    """OpenVINO on two threads, at most five images a pass."""
    engine = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 2, max_batch=5))
    yield engine
    engine.close()


def test_calls_from_several_threads_keep_their_own_results(two_streams):
    """Batches of all sizes at once, each on the streams as they come free, give what each image gives alone."""
    images = [load((480, 640), seed) for seed in range(14)]
    alone = [two_streams.detect([image], [LOW])[0] for image in images]
    parts = [slice(0, 5), slice(5, 6), slice(6, 8), slice(8, 11), slice(11, 12), slice(12, 14)]
    with ThreadPoolExecutor(3) as callers:
        found = callers.map(lambda part: two_streams.detect(images[part], [LOW] * (part.stop - part.start)), parts)
        together = [one for batch in found for one in batch]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)


def test_capacity_is_told_when_a_stream_comes_free(two_streams, monkeypatch):
    """A batch that is spread over the streams tells it; one image on all threads leaves none."""
    told: list[int] = []
    monkeypatch.setattr(two_streams, "_on_capacity", told.append)
    two_streams.detect([load((480, 640))], [LOW])
    assert not told
    two_streams.detect([load((480, 640))] * 4, [LOW] * 4)
    assert set(told) == {1}


def test_images_run_apart_leave_the_other_stream_free(two_streams, monkeypatch):
    """It is told at once, and another call runs on it meanwhile; results are the same."""
    told: list[int] = []
    monkeypatch.setattr(two_streams, "_on_capacity", told.append)
    image = load((480, 640))
    find, free = two_streams._find, []

    def look(stream, *arguments):
        free.append(two_streams._idle.qsize())
        return find(stream, *arguments)

    monkeypatch.setattr(two_streams, "_find", look)
    (apart,) = two_streams.detect_apart([image], [LOW])
    assert (free, set(told)) == ([1], {1})
    (usual,) = two_streams.detect([image], [LOW])
    np.testing.assert_allclose(apart.scores, usual.scores, atol=1e-4)


@given(batch=st.integers(1, 40), streams=st.integers(2, 9), quiet=st.booleans())
def test_shares_cover_a_batch_once_and_in_order(batch, streams, quiet):
    """Equal shares and a remainder for all threads on a quiet engine, shares that differ by one on a busy one."""
    parts, left = _shares(batch, streams, quiet=quiet)
    assert [image for part in parts for image in range(part.start, part.stop)] + list(left) == list(range(batch))
    lengths = {part.stop - part.start for part in parts}
    assert all(0 < length <= -(-batch // streams) for length in lengths)
    assert len(parts) <= streams
    assert len(lengths) <= (1 if quiet else 2)
    assert len(left) < streams if quiet else not left


def test_info_says_what_runs(engines):
    """Everything `GET /info` shows, JSON-ready."""
    info = engines["openvino"].info.as_dict()
    assert info["engine"] == "openvino"
    assert (info["precision"], info["threads"], info["max_batch"]) == ("fp32", 1, 4)
    assert (info["input_size"], info["classes"]) == (SIZE_PX, ("person",))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_input_is_refused(engines, kind):
    """Images made for another size, and one option too few."""
    with pytest.raises(ShapeError, match="letterbox size"):
        engines[kind].detect([load((64, 64), size=128)], [LOW])
    with pytest.raises(ShapeError, match="expected one for each of 2"):
        engines[kind].detect([load((64, 64))] * 2, [LOW])
    assert len(engines[kind].detect([load((64, 64))], [LOW])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions("torch", device="cuda"), NO_CARD),
        (EngineOptions("auto", device="cuda:1"), NO_CARD),
        (EngineOptions("openvino", device="cuda"), "runs on `cpu`"),
        (EngineOptions("torch", "fp16", "cpu"), "fp16 is for CUDA"),
    ],
    ids=["torch on cuda", "auto on cuda", "openvino on cuda", "torch fp16 on cpu"],
)
def test_what_is_missing_is_named(options, message):
    """EngineUnavailable, before any weights are read."""
    with pytest.raises(EngineUnavailable, match=message):
        create_engine(seeded_checkpoint("nano"), options)


def test_devices_that_do_not_exist_are_a_configuration_error():
    """Neither a word torch does not know nor one this project does not."""
    for device in ("tpu-pod", "mps"):
        with pytest.raises(ConfigurationError, match="auto, cpu, cuda"):
            create_engine(seeded_checkpoint("nano"), EngineOptions("torch", device=device))


def test_auto_is_openvino_without_cuda(monkeypatch):
    """And torch with it, unless the CPU is asked for."""
    assert choose_kind(EngineOptions(device="cpu")) == "openvino"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_kind(EngineOptions()) == "torch"
    assert choose_kind(EngineOptions(device="cpu")) == "openvino"


def test_threads_are_the_cores_a_replica_owns(monkeypatch):
    """Ray tells a replica its share in OMP_NUM_THREADS."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert owned_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert owned_cores() >= 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_kind_of_running_out_of_memory_has_one_name(error):
    """The batcher recognises it and splits the batch; nothing holds the failed pass's tensors any more."""
    with pytest.raises(EngineOutOfMemory, match="batch of 8") as caught, naming_failures(8):
        raise error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("uncorrectable ECC error"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_a_card_that_failed_is_lost(error):
    """Its replica must be replaced: every later call would fail as well."""
    with pytest.raises(EngineLost), naming_failures(8):
        raise error


def test_other_failures_keep_their_name():
    """Only out-of-memory errors are mapped."""
    with pytest.raises(RuntimeError, match="shape"), naming_failures(8):
        raise RuntimeError("shape mismatch")


def test_other_heads_are_refused():
    """RawNetwork knows RTMDet-Ins heads only."""
    detector = seeded_checkpoint("nano").network()
    detector.bbox_head = torch.nn.Identity()
    with pytest.raises(CheckpointError, match="RTMDet-Ins head"):
        RawNetwork(detector, SIZE_PX)


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))])
def test_default_buckets(most, buckets):
    """Powers of two and the largest batch."""
    assert default_buckets(most) == buckets


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
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout.strip()) == (0, "heard"), done.stderr


def test_importing_the_package_is_cheap():
    """The ingress imports its types; it must not pay for torch, and nothing here may import Ray."""
    code = "import sys, pipeline.inference.engine; print([m for m in ('torch', 'openvino', 'mmdet', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_layers_in_float32_between_others_in_bf16():
    """Only what comes and goes is rounded, and the weights that were rounded already."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 8, 3)).bfloat16()
    features = torch.randn(1, 3, 16, 16).bfloat16()
    with torch.inference_mode():
        rounded = layers(features).float()
        found = Float32Layers(layers)(features)
        exact = layers.double()(features.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=1e-3)
    assert (found - exact).abs().mean() < (rounded - exact).abs().mean()
