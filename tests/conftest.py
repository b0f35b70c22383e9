"""Environment that every test shares, and the choice between a machine's CPU and its GPU.

pytest           all tests on the CPU; those marked `cuda` are skipped
pytest --cuda    those marked `cuda`, and no others, on the GPU
"""

import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from pipeline.model.yapf_import import import_yapf

END_TO_END = "tests/e2e/"

# Ray reads these when it starts.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


# What the tested code, and processes that a test kills, leave in the folder for temporary files goes with this one. pytest's own folders
# stay where it keeps those of the last runs. Set before anything asks for the folder.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
TEMPORARY = tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="rt", dir="/tmp")


import_yapf()  # some tests import mmengine before the code they test does

# On a busy machine a single example takes long to draw or to run.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda", action="store_true", help="run the tests that need a GPU, and only those")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cuda"):
        config.option.markexpr = "cuda"
    else:
        # `auto` takes a GPU if there is one, and then everything written for the CPU would test something else. Set over
        # whatever the machine says; child processes (Ray, servers) inherit it. PyTorch reads it when first asked for a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure() -> None:
    shutil.rmtree(TEMPORARY, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests come first: they take longest, and the other worker of `pytest -n 2` runs the rest meanwhile. Among them those that
    start a service of their own, so that fewer run at a time."""
    items.sort(key=lambda item: (not item.nodeid.startswith(END_TO_END), "service" in getattr(item, "fixturenames", ())))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which `pytest -n 2` needs
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share fixtures run in one worker: those of a file, and all end-to-end tests, which share the service."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return END_TO_END if nodeid.startswith(END_TO_END) else nodeid.split("::", 1)[0]

    config.option.loadscopereorder = False  # else files with many tests come first
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """Collecting garbage then leaves out all imported modules, which takes 0.4 s else."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _pipeline_logger() -> Iterator[None]:
    """A stage gives this logger the handlers of Ray Serve's, for the life of its process."""
    yield
    logging.getLogger("pipeline").handlers = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if hasattr(item.config, "workerinput") and (torch := sys.modules.get("torch")):
        torch.set_num_threads(1)  # workers whose PyTorch has a thread per core wait for each other; an engine sets its own number
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        asked = item.config.getoption("--cuda")
        pytest.skip("PyTorch sees no GPU here" if asked else "needs a GPU and `pytest --cuda`")


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory):
    """Folder of a tiny annotated data set, see tests/support/tiny_coco.py."""
    from tests.support.tiny_coco import write_tiny_coco

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_coco(folder)
    return folder
