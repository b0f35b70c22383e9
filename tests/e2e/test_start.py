"""`make serve`'s command starts the service, says where it is, and ends cleanly on SIGTERM."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from loadtest.service.local_service import REPOSITORY, service_environment
from loadtest.service.machine import free_port


@pytest.fixture
def started():
    """The running command and the file that it prints to; on ports of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: Ray's socket names hang below it
    document = yaml.safe_load((REPOSITORY / "serve_config.together.yaml").read_text())
    document["http_options"]["port"] = free_port()
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "serve_app.start", str(folder / "serve_config.yaml")]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, env=service_environment(folder), stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process, folder / "out"
        finally:
            family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            for member in family:
                member.kill()
            process.wait(10)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_line(process, out, pattern, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(pattern, out.read_text()):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no line {pattern!r} in:\n{out.read_text()}")


def test_start_speaks_and_ends_cleanly(started):
    """A few lines, then the address, which answers; after SIGTERM status 0, no stack trace and no process left."""
    process, out = started
    url = wait_for_line(process, out, r"Ready: (http\S+)")[1]
    assert requests.get(url, timeout=10).text == "Healthy"
    assert len(out.read_text().splitlines()) < 15
    assert "INFO" not in out.read_text()
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    text = out.read_text()
    assert text.splitlines()[-1].endswith("Stopped.")
    assert "SIGTERM received" not in text
    assert "Traceback" not in text
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
