"""A stand-in for `supervision`, which is no dependency of the tests."""

import importlib.util
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@dataclass
class Detections:
    """What `to_supervision` uses of supervision's class, whose fields these are."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    data: Any = None

    @classmethod
    def empty(cls):
        return cls(np.empty((0, 4), np.float32))

    def is_empty(self):
        return len(self.xyxy) == 0


@pytest.fixture
def supervision(monkeypatch):
    """The package where it is installed (`pip install './client[supervision]'`), else the stand-in."""
    if importlib.util.find_spec("supervision") is None:
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Detections))
