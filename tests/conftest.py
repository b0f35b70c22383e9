"""Environment that every test shares, and the choice between a machine's CPU and its CUDA card.

pytest           all tests on the CPU; those marked `cuda` are skipped
pytest --cuda    those marked `cuda`, and no others, on the card
"""

import gc
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
END_TO_END = TESTS / "e2e"

# Ray reads these when it starts.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda", action="store_true", help="run the tests that need a CUDA card, and only those")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cuda"):
        config.option.markexpr = "cuda"
    else:
        # `auto` takes a card where there is one, and then everything written for the CPU would test something else. Set over
        # whatever the machine says; child processes (Ray, servers) inherit it. PyTorch reads it when first asked for a card.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two workers. Tests that share a fixture run in the same one: those of a file, and all end-to-end tests (first:
    they take longest)."""
    items.sort(key=lambda item: END_TO_END not in item.path.parents)
    for item in items:
        shared = END_TO_END if END_TO_END in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(shared.relative_to(TESTS))))


def pytest_collection_finish() -> None:
    """mmengine collects garbage for every data set that it builds: 0.4 s each, while all imported modules are looked through."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        asked = item.config.getoption("--cuda")
        pytest.skip("PyTorch sees no CUDA card here" if asked else "needs a CUDA card and `pytest --cuda`")
