"""`python -m loadtest` and what it says when nothing can be measured."""

import asyncio
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from loadtest import __main__ as main
from loadtest.service.machine import free_port
from tests.support.fake_service import fake_service


@pytest.mark.parametrize("scenario", ["server", "offline"])
async def test_a_wrong_key_is_named(scenario, monkeypatch, capsys):
    """After the warm-up, with its status; no search for a rate."""
    monkeypatch.setattr(main, "WARM_UP_S", 0.1)
    async with fake_service(key="right") as url:
        status = await asyncio.to_thread(main.main, ["run", "--scenario", scenario, "--url", url, "--key", "wrong"])
    assert status == 1
    assert "status 401" in (said := capsys.readouterr().err)
    assert "LOADTEST_KEY" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --scenario server --url 127.0.0.1:8000", "is not a complete URL"),
        ("run --scenario server --size 640", "'640' is not WxH, width and height in pixels such as 640x480"),
        ("run --scenario server --size 640x0", "'640x0' is not WxH"),
        ("run --scenario server --url http://127.0.0.1:8000/score", "without /score, which is appended: http://127.0.0.1:8000"),
        ("plan --costs costs.json --step-ms 12", "'12' is not BASE,PER_IMAGE"),
        ("plan --costs costs.json --step-ms 12,x", "'12,x' is not BASE,PER_IMAGE"),
        ("plan --costs costs.json --step-ms 0,0", "neither part may be negative"),
    ],
)
def test_wrong_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit):
        main.main(arguments.split())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --scenario server --config {}/nope.yaml", "{}/nope.yaml: cannot be read: "),
        ("run --scenario server --images {}/nope", "{}/nope: No such file or directory"),
        ("run --scenario server --images {}", "{} holds no photo"),
        ("soak --images {}/nope", "{}/nope: No such file or directory"),
        ("plan --costs {}/nope.json", "{}/nope.json: No such file or directory"),
        ("plan --costs {}/other.json", "{}/other.json holds no costs; `python -m loadtest costs"),
        ("report {}/nope.json", "{}/nope.json: No such file or directory"),
        ("report {}/other.json", "{}/other.json holds no results; `python -m loadtest run"),
        ("report {}/broken.json", "{}/broken.json holds no results; `python -m loadtest run"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    """And nothing is started."""
    monkeypatch.setattr(main, "local_service", lambda *_, **__: pytest.fail("started a service"))
    (tmp_path / "other.json").write_text('{"machine": {}}')
    (tmp_path / "broken.json").write_text('{"machine"')
    assert main.main(arguments.format(tmp_path).split()) == 1
    assert (told := capsys.readouterr().err).startswith(f"loadtest: {said.format(tmp_path)}")
    assert told.count("\n") == 1


def test_a_server_that_does_not_run_is_reported_at_once(capsys):
    """With the URL, and not after seconds of refused tries."""
    url, began = f"http://127.0.0.1:{free_port()}", time.monotonic()
    assert main.main(["run", "--scenario", "server", "--url", url]) == 1
    assert capsys.readouterr().err.startswith(f"loadtest: cannot connect to {url}; ")
    assert time.monotonic() - began < main.WARM_UP_S + 1  # photos and machine take some of it


def test_ctrl_c_stops_what_was_started(tmp_path, monkeypatch, capsys):
    """130, one line, and the service is stopped."""
    stopped = []

    @contextmanager
    def service(*_, **__):
        try:
            yield SimpleNamespace(url="http://127.0.0.1:9", processes=list, folder=tmp_path)
        finally:
            stopped.append(True)

    async def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "local_service", service)
    monkeypatch.setattr(main, "_measure", interrupted)
    assert main.main(["run", "--scenario", "server"]) == 130
    assert capsys.readouterr().err == "loadtest: interrupted\n"
    assert stopped
