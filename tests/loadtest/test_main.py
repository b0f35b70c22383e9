"""`python -m loadtest` and what it says when nothing can be measured."""

import asyncio
import errno
import json
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest import __main__ as main
from loadtest.load.openloop import Query, summarise
from loadtest.load.traffic import OK
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
        ("run --scenario steady --rate 0", "argument --rate: '0' is not above 0"),
        ("run --scenario steady --images-per-request 0", "argument --images-per-request: '0' is not a number from 1"),
        ("soak --rate -1", "argument --rate: '-1' is not a number from 0"),
        ("costs --clients 0", "argument --clients: '0' is not a number from 1"),
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


@pytest.fixture
def measured(monkeypatch):
    """`_measure` replaced: one answer, within a few milliseconds."""

    async def measure(*_):
        return {"scenario": "offline", "summary": asdict(summarise([Query(0, 0, 0.01, OK)], None))}, None

    monkeypatch.setattr(main, "_measure", measure)


@pytest.mark.usefixtures("measured")
def test_results_are_printed_though_the_disk_is_full(tmp_path, monkeypatch, capsys):
    """Then the error, in one line."""
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert main.main(["run", "--scenario", "offline", "--url", "http://127.0.0.1:9", "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["result"]["summary"]["ok"] == 1
    assert printed.err.startswith("loadtest: [Errno 28] No space left")


def test_an_output_that_cannot_be_is_found_before_the_measurement(tmp_path, monkeypatch, capsys):
    """A file where the folder should be."""
    (tmp_path / "taken").touch()
    monkeypatch.setattr(main, "_measure", lambda *_: pytest.fail("measured"))
    arguments = ["run", "--scenario", "offline", "--url", "http://127.0.0.1:9", "--output", str(tmp_path / "taken")]
    assert main.main(arguments) == 1
    assert capsys.readouterr().err == f"loadtest: {tmp_path / 'taken'}: File exists\n"


async def test_missing_metrics_are_reported_once(tmp_path, monkeypatch, capsys):
    """Before the measurement; nothing is read after it."""
    monkeypatch.setattr(main, "WARM_UP_S", 0.1)
    arguments = ["run", "--scenario", "offline", "--offline-images", "2", "--metrics", str(tmp_path / "none.json")]
    async with fake_service() as url:
        assert await asyncio.to_thread(main.main, [*arguments, "--url", url]) == 0
    assert capsys.readouterr().err.count("no metrics exporter answers") == 1


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
