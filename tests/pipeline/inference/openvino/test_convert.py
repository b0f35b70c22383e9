"""Conversion to OpenVINO, and the folder that keeps converted networks."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from pipeline.errors import ConfigurationError
from pipeline.inference.openvino import convert as openvino_model
from pipeline.inference.openvino.convert import CORE, convert_cached
from pipeline.model.zoo import embedded_models
from tests.support.seeded import photo

INPUT_HW = (96, 128)


@pytest.fixture
def bf16_everywhere(monkeypatch):
    """Convert for bf16 on any CPU; these tests compute in float32."""
    monkeypatch.setattr(openvino_model, "choose_precision", lambda asked: asked)


@pytest.mark.usefixtures("bf16_everywhere")
def test_cpus_that_share_a_cache_folder_get_their_own_network(monkeypatch, tmp_path):
    """Layers are packed for a matrix unit alone; the outputs are the same, and the second start reads what the first one kept."""
    pixels = ov.Tensor(photo(INPUT_HW, 3)[None])
    (path,) = embedded_models().values()
    outputs = {}
    for able in (True, False):
        monkeypatch.setattr(openvino_model, "cpu_has_matrix_unit", lambda able=able: able)
        for _ in ("first start", "second start"):
            converted = convert_cached(path, "bf16", tmp_path)
        model = CORE.compile_model(converted.for_one_image(INPUT_HW), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs[able] = [value.copy() for value in model(pixels).values()]
    assert sorted("packed" in folder.name for folder in (tmp_path / "openvino").iterdir()) == [False, True]
    for packed, plain in zip(outputs[True], outputs[False], strict=True):
        np.testing.assert_allclose(packed, plain, rtol=1e-3, atol=1e-2)


def test_without_half_precision_nothing_is_packed(monkeypatch):
    """AMX has no float32: a CPU with it computes such networks as others do."""
    monkeypatch.setattr(openvino_model, "cpu_has_matrix_unit", lambda: True)
    assert openvino_model._packs("bf16")
    assert not openvino_model._packs("fp32")


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    """Said at once, with the setting to change."""
    (path,) = embedded_models().values()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"model\.cache_dir: .* cannot be written to .*choose a folder"):
        convert_cached(path, "fp32", tmp_path / "file")


def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    """For example because the disk is full."""
    (path,) = embedded_models().values()
    monkeypatch.setattr(openvino_model, "convert", lambda *_: None)
    monkeypatch.setattr(openvino_model, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert_cached(path, "fp32", tmp_path)
    assert list((tmp_path / "openvino").iterdir()) == []
