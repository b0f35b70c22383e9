"""Downloads against a real local server: progress, resume, hashes, two at once, no connection."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import DownloadError
from pipeline.model.download import download_file, sha256_of
from tests.support.file_server import file_server

CONTENT = bytes(range(256)) * 8_000
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server():
    with file_server(CONTENT) as running:
        yield running


def test_download_and_cache(server, tmp_path, capfd):
    """The first call downloads with progress on stderr; the second sends no request."""
    path = tmp_path / "deep" / "model.pth"
    assert download_file(server.url, path, sha256_prefix=PREFIX) == path
    assert path.read_bytes() == CONTENT
    assert "model.pth" in capfd.readouterr().err
    download_file(server.url, path, sha256_prefix=PREFIX)
    assert len(server.requests) == 1


def test_resume_after_a_cut(server, tmp_path):
    """A broken connection leaves the part; the next try asks for the rest only."""
    path = tmp_path / "model.pth"
    server.cut_after = 500_000
    with pytest.raises(DownloadError):
        download_file(server.url, path, sha256_prefix=PREFIX)
    assert not path.exists()
    have = (tmp_path / "model.pth.part").stat().st_size
    server.cut_after = None
    download_file(server.url, path, sha256_prefix=PREFIX)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={have}-"
    assert have > 0


def test_part_that_is_already_whole(server, tmp_path):
    """A complete part (killed just before its rename) needs no byte more."""
    (tmp_path / "model.pth.part").write_bytes(CONTENT)
    download_file(server.url, tmp_path / "model.pth", sha256_prefix=PREFIX)
    assert sha256_of(tmp_path / "model.pth").startswith(PREFIX)


def test_wrong_hash_is_refused_and_removed(server, tmp_path):
    """Another content than the name promises never becomes the file."""
    with pytest.raises(DownloadError, match="expected ffffffff"):
        download_file(server.url, tmp_path / "model.pth", sha256_prefix="ffffffff")
    assert not (tmp_path / "model.pth").exists()
    assert not (tmp_path / "model.pth.part").exists()


def test_offline_says_what_to_do(tmp_path):
    """No connection: the message names the URL, the file and where to put it by hand."""
    url, path = "http://127.0.0.1:9/model-00000000.pth", tmp_path / "model.pth"
    with pytest.raises(DownloadError) as caught:
        download_file(url, path, sha256_prefix="00000000")
    assert url in caught.value.message
    assert str(path) in caught.value.message


def test_a_folder_that_cannot_be_written(server, tmp_path):
    """The message names the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"could not write .*model\.pth .*choose a folder .*model\.cache_dir"):
        download_file(server.url, tmp_path / "file" / "model.pth", sha256_prefix=PREFIX)
    assert server.requests == []


def test_http_error_is_named(server, tmp_path):
    """A 404 is told as such."""
    server.status = 404
    with pytest.raises(DownloadError, match="HTTP 404"):
        download_file(server.url, tmp_path / "model.pth", sha256_prefix=PREFIX)


def test_two_threads_fetch_once(server, tmp_path):
    """The second process waits for the first and uses its file."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download_file(server.url, tmp_path / "model.pth", sha256_prefix=PREFIX), range(4)))
    assert len(server.requests) == 1


def test_two_processes_fetch_once(server, tmp_path):
    """The same between processes."""
    program = (
        "import sys; from pathlib import Path; from pipeline.model.download import download_file; "
        "download_file(sys.argv[1], Path(sys.argv[2]), sha256_prefix=sys.argv[3])"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "model.pth"), PREFIX]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(server.requests) == 1
