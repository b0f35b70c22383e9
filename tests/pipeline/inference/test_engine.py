"""The engines on a CPU: the same results from each, and the same refusals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import ShapeError
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.types import DetectOptions
from tests.support.seeded import SIZE_PX, loaded_photo, seeded_checkpoint

KINDS = ["openvino", "torch"]
LOW = DetectOptions(0.05)


@pytest.fixture(scope="module")
def engines():
    """Both engines in float32 on mmdet's square, at most four images per pass."""
    options = {kind: EngineOptions(kind, "fp32", "cpu", 1, max_batch=4, fitted=False) for kind in KINDS}
    made = {kind: create_engine(seeded_checkpoint("nano"), options[kind]) for kind in KINDS}
    yield made
    for engine in made.values():
        engine.close()


def test_both_engines_agree(engines):
    """OpenVINO and torch in float32, a batch of three shapes."""
    images = [loaded_photo((480, 640), 1), loaded_photo((100, 1000), 2), loaded_photo((300, 200), 3)]
    for one, other in zip(*(engines[kind].detect(images, [LOW] * 3) for kind in KINDS), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=0.001)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.5)
        assert np.mean((one.mask_logits > 0) == (other.mask_logits > 0)) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_than_fit_go_in_several_passes(engines, kind):
    """Nine images with max_batch 4 give what nine calls give."""
    images = [loaded_photo((480, 640), seed) for seed in range(9)]
    together = engines[kind].detect(images, [LOW] * 9)
    for image, found in zip(images, together, strict=True):
        alone = engines[kind].detect([image], [LOW])[0]
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_results_outlive_the_next_batch(engines, kind):
    """Nothing that is returned points into a buffer that the engine uses again."""
    first = engines[kind].detect([loaded_photo((480, 640), 1)], [LOW])[0]
    before = first.mask_logits.copy(), first.boxes.copy()
    engines[kind].detect([loaded_photo((480, 640), 2)] * 4, [LOW] * 4)
    np.testing.assert_array_equal(first.mask_logits, before[0])
    np.testing.assert_array_equal(first.boxes, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near(engines, kind):
    """bf16 moves scores by a little, on the best instances."""
    precise = engines[kind].detect([loaded_photo((480, 640))], [LOW])[0]
    engine = (
        create_engine(seeded_checkpoint("nano"), EngineOptions(kind, "bf16", "cpu", 1, fitted=False))
        if bf16_here()
        else pytest.skip("no bf16")
    )
    engine.warm_up()
    rough = engine.detect([loaded_photo((480, 640))], [LOW])[0]
    np.testing.assert_allclose(rough.scores[:5], precise.scores[:5], atol=0.05)
    assert engine.info.precision == "bf16"


def bf16_here() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def test_info_says_what_runs(engines):
    """Everything `GET /info` shows, JSON-ready."""
    info = engines["openvino"].info.as_dict()
    assert info["engine"] == "openvino"
    assert (info["precision"], info["threads"], info["max_batch"]) == ("fp32", 1, 4)
    assert (info["input_size"], info["classes"]) == (SIZE_PX, ("person",))
    assert info["optimizations"] == ()
    fitted = create_engine(seeded_checkpoint("nano"), EngineOptions("openvino", "fp32", "cpu", 1))
    assert fitted.info.optimizations == ("fitted_input",)
    fitted.close()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_input_is_refused(engines, kind):
    """Images made for another size, and one option too few."""
    with pytest.raises(ShapeError, match="letterbox size"):
        engines[kind].detect([loaded_photo((64, 64), size=128)], [LOW])
    with pytest.raises(ShapeError, match="expected one for each of 2"):
        engines[kind].detect([loaded_photo((64, 64))] * 2, [LOW])
    assert len(engines[kind].detect([loaded_photo((64, 64))], [LOW])) == 1


def test_importing_the_package_is_cheap():
    """The ingress imports its types; it must not pay for torch, and nothing here may import Ray."""
    code = "import sys, pipeline.inference.engine; print([m for m in ('torch', 'openvino', 'mmdet', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
