"""One headless user against the fake service, and the shapes."""

import asyncio
import importlib.util
import subprocess
import sys

import pytest

from loadtest.shapes import users_at
from tests.loadtest.fake_service import fake_service

needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is not installed: pip install -e '.[load]'"
)


async def locust(url, *options):
    """Exit status and everything that it printed, of two seconds of Locust (a process: it patches the standard library)."""
    arguments = ("-f", "loadtest/locustfile.py", "--headless", "-u", "1", "--shape-seconds", "2", "-H", url, *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "locust", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    return process.returncode, printed.decode()


@needs_locust
async def test_user_scores():
    """Right answers are successes, under a name that says what was sent."""
    async with fake_service() as url:
        status, printed = await locust(url, "Base64User")
    assert status == 0, printed
    assert "1 image, base64" in printed


@needs_locust
async def test_wrong_answer_fails():
    """A 200 that answers nothing is a failure."""
    async with fake_service(answer=b"[]") as url:
        status, printed = await locust(url, "Base64User")
    assert status == 1
    assert "wrong answer: 0 results for 1 images" in printed


@needs_locust
async def test_refusals_have_a_name():
    """503 with Retry-After is counted apart."""
    async with fake_service(max_waiting=0) as url:
        _, printed = await locust(url, "Base64User")
    assert "refused 503, Retry-After" in printed


@pytest.mark.parametrize(
    ("shape", "users"), [("steady", [10, 10, 10]), ("soak", [10, 10, 10]), ("ramp", [1, 6, 10]), ("spike", [1, 10, 1])]
)
def test_shapes(shape, users):
    """Users at the start, in the middle and near the end of a minute; then it is over."""
    assert [users_at(shape, at, 10, 60) for at in (0, 31, 59.9)] == users
    assert users_at(shape, 60, 10, 60) is None
