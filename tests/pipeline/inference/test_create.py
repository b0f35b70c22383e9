"""Engines that cannot be created are refused before any weights are read."""

import pytest

from pipeline.errors import ConfigurationError, EngineUnavailable
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from tests.support.seeded import seeded_checkpoint

NO_GPU = "CPU build|PyTorch sees 0 GPUs"  # by the build of PyTorch; tests/conftest.py hides a GPU


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions("torch", device="cuda"), NO_GPU),
        (EngineOptions("auto", device="cuda:1"), NO_GPU),
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
