"""Headless users against a fake service."""

import asyncio
import importlib.util
import subprocess
import sys

import pytest

from loadtest import __main__ as main
from loadtest.service.machine import free_port
from tests.support.fake_service import fake_service

needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is not installed: pip install -e '.[load]'"
)


async def locust(url, *options, length=("--shape-seconds", "2")):
    """Exit status and everything that it printed, of two seconds of Locust (a process: it patches the standard library)."""
    arguments = ("-f", "loadtest/locustfile.py", "--headless", "-u", "1", *length, "-H", url, *options)
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
async def test_several_processes(monkeypatch):
    """Each worker has its bodies before its users start, and they share the port of the image server."""
    monkeypatch.setenv("LOADTEST_IMAGE_PORT", str(free_port()))
    async with fake_service() as url:
        status, printed = await locust(url, "MixedUser", "-u", "4", "--processes", "2")
    assert status == 0, printed
    assert "1 image, URL" in printed
    assert "Traceback" not in printed


@needs_locust
async def test_photos_that_are_not_there():
    """One line, and nothing is sent."""
    async with fake_service() as url:
        status, printed = await locust(url, "Base64User", "--images", "/nowhere")
    assert status == 1
    assert "/nowhere: No such file or directory" in printed
    assert "Traceback" not in printed


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


@needs_locust
async def test_the_key_is_sent(monkeypatch):
    """From LOADTEST_KEY; a wrong one is a failure with its status."""
    async with fake_service(key="right") as url:
        monkeypatch.setenv("LOADTEST_KEY", "right")
        assert (await locust(url, "Base64User"))[0] == 0
        monkeypatch.setenv("LOADTEST_KEY", "wrong")
        status, printed = await locust(url, "Base64User")
    assert (status, "status 401" in printed) == (1, True)


@needs_locust
async def test_the_run_time_is_the_length_of_the_shape():
    """A ramp to 3 users within the 3 s of -t has its second one after 1 s and ends; it does not take a minute."""
    async with fake_service() as url, asyncio.timeout(40):
        status, printed = await locust(url, "Base64User", "-u", "3", "--shape", "ramp", length=("-t", "3s"))
    assert status == 0
    assert "Shape test updating to 2 users" in printed


@needs_locust
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["Base64User"], "use --allow-remote"),
        (["UrlUser", "Base64User", "--allow-remote"], "UrlUser: photos at http://127.0.0.1 of this machine"),
    ],
)
async def test_what_cannot_be_is_refused(options, said):
    """One line, before anything is sent."""
    status, printed = await locust("http://192.0.2.1", *options)
    assert status == 1
    assert said in printed
    assert "Traceback" not in printed


@needs_locust
async def test_own_image_urls():
    """They are used for the requests."""
    async with fake_service() as url:
        status, printed = await locust(url, "UrlUser", "--image-urls", "https://example.com/a.jpg,https://example.com/b.jpg")
    assert status == 0, printed


@needs_locust
@pytest.mark.parametrize(
    ("users", "refused", "status", "left_out"),
    [
        (["MixedUser"], 422, 0, ""),
        (["UrlUser", "Base64User"], 422, 0, "; UrlUser is left out"),
        (["UrlUser"], 424, 1, "; UrlUser is left out"),
    ],
)
async def test_a_service_that_refuses_the_image_server(users, refused, status, left_out):
    """This is detected before the run, with the settings to change; the run then sends no URLs. Also with AzureML's status codes."""
    async with fake_service(urls=False, refused=refused) as url:
        ended, printed = await locust(url, *users)
    assert ended == status, printed
    assert f"This run sends no URLs{left_out}." in printed
    assert "set args.image_loader.fetch in its configuration to {allowed_networks: [127.0.0.1/32]" in printed
    assert "Traceback" not in printed
    assert ("1 image, base64" in printed) == (status == 0)
    assert "1 image, URL" not in printed


@needs_locust
def test_a_host_in_the_environment_is_respected(monkeypatch):
    """No service is started beside it."""
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command) or subprocess.CompletedProcess(command, 0))
    monkeypatch.setattr(main, "local_service", lambda **_: pytest.fail("started a service"))
    monkeypatch.setenv("LOCUST_HOST", "http://127.0.0.1:9")
    assert main.run_locust(["Base64User"]) == 0
    assert "--host" not in ran[0]


@needs_locust
@pytest.mark.parametrize("option", ["--help", "-l", "--version"])
def test_an_option_that_only_prints_starts_no_service(option, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    monkeypatch.setattr(main, "local_service", lambda **_: pytest.fail("started a service"))
    assert main.run_locust([option]) == 0
