"""What tests of jobs share: a client that does not sleep, and mmengine without two slow habits."""

import threading
from types import SimpleNamespace

import pytest

from jobs.scoring import service_client


@pytest.fixture(autouse=True)
def hurried_mmengine():
    """Without two of its habits that take most of the time of a training of one step: it lays the settings out with yapf, five times,
    and collects the garbage of the whole test process for every data set that it builds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        patch.setattr("mmengine.dataset.base_dataset.gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that the service client would have slept."""
    slept = []

    class Awake(threading.Event):
        def wait(self, timeout=None):
            slept.append(timeout)
            return self.is_set()

    monkeypatch.setattr(service_client, "Event", Awake)
    return slept
