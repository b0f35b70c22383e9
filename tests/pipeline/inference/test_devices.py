"""The engine and the threads that are chosen for a machine."""

import torch

from pipeline.inference.devices import choose_kind, owned_cores
from pipeline.inference.engine import EngineOptions


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
