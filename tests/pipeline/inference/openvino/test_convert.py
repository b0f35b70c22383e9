"""Conversion to OpenVINO, and the folder that keeps converted networks."""

from __future__ import annotations

import errno
import os

import numpy as np
import openvino as ov
import pytest

from pipeline.errors import ConfigurationError
from pipeline.inference.openvino import convert as openvino_model
from pipeline.inference.openvino.convert import CORE, convert_cached
from pipeline.model.checkpoints import load_checkpoint
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


@pytest.fixture(scope="module")
def converted():
    (path,) = embedded_models().values()
    return openvino_model.convert(load_checkpoint(path), "fp32")


@pytest.fixture
def entry(tmp_path, converted, monkeypatch):
    """The only entry of a cache folder, of the embedded model in fp32; conversions take no time."""
    monkeypatch.setattr(openvino_model, "convert", lambda *_: converted)
    (path,) = embedded_models().values()
    convert_cached(path, "fp32", tmp_path)
    (folder,) = (tmp_path / "openvino").iterdir()
    return folder


def cached(entry):
    (path,) = embedded_models().values()
    return convert_cached(path, "fp32", entry.parent.parent)


def test_everybody_may_read_the_cache(entry):
    """Services of several users may share it."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in (entry, *entry.iterdir())}
    umask = os.umask(0)
    os.umask(umask)
    assert set(modes.values()) == {0o777 & ~umask, 0o666 & ~umask}


@pytest.mark.parametrize("name", ["head.safetensors", "network.xml", "network.bin", "sha256"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "zeros", "one byte"])
def test_a_damaged_entry_is_replaced(entry, name, damage, caplog):
    """As after a loss of power: the service starts, and the next start finds a whole entry."""
    good = (entry / name).read_bytes()
    if damage == "missing":
        (entry / name).unlink()
    else:
        middle = len(good) // 2
        other = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        damaged = {"empty": b"", "half": good[:middle], "zeros": bytes(len(good)), "one byte": other}
        (entry / name).write_bytes(damaged[damage])
    assert cached(entry).classes == ("person",)
    assert "cannot be read, so the network is converted anew" in caplog.text
    caplog.clear()
    assert cached(entry).classes == ("person",)
    assert not caplog.text
    assert list(entry.parent.iterdir()) == [entry]


def test_an_entry_that_cannot_be_replaced(entry, converted, caplog, monkeypatch):
    """As another user's: the network is converted at each start, and in memory."""
    (entry / "head.safetensors").write_bytes(b"")
    monkeypatch.setattr(openvino_model.Path, "rename", lambda *_: refused())
    assert cached(entry) is converted
    assert "cannot be replaced, so each start converts the network. Delete it" in caplog.text
    assert list(entry.parent.iterdir()) == [entry]


def refused():
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    """For example because the disk is full."""
    (path,) = embedded_models().values()
    monkeypatch.setattr(openvino_model, "convert", lambda *_: None)
    monkeypatch.setattr(openvino_model, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert_cached(path, "fp32", tmp_path)
    assert list((tmp_path / "openvino").iterdir()) == []
