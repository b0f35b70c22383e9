"""Downloads a large file: with progress, resume, hash check and atomic rename; one process at a time.

url ─▶ path.part (resumed where it stopped) ─▶ SHA-256 ─▶ path
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock
from tqdm import tqdm

from pipeline.errors import DownloadError

CHUNK_BYTES = 1 << 16  # lost at most when a connection breaks
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


def download_file(url: str, path: Path, *, sha256_prefix: str) -> Path:
    """Download `url` to `path`, unless `path` exists.

    Args:
        url: http or https.
        path: destination; its folder is created. A partial download is kept beside it as `.part` and resumed.
        sha256_prefix: first hex digits of the file's SHA-256 (OpenMMLab puts eight into the file name).
    Returns:
        `path`.
    Raises:
        DownloadError: no connection, an HTTP error, a wrong hash or a folder that cannot be written; the message says how to put the file
            there by hand.
    """
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            return path if path.is_file() else _download(url, path, sha256_prefix)
    except OSError as error:
        raise DownloadError(
            f"could not write {path} ({error}): choose a folder that can be written, with model.cache_dir. {_by_hand(url, path)}"
        ) from error


def _download(url: str, path: Path, sha256_prefix: str) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part)
    except (requests.RequestException, OSError) as error:
        raise DownloadError(f"could not download {url}: {_reason(error)}. {_by_hand(url, path)}") from error
    digest = sha256_of(part)
    if not digest.startswith(sha256_prefix):
        part.unlink()
        raise DownloadError(f"{url} arrived with SHA-256 {digest[:12]}…, expected {sha256_prefix}…. {_by_hand(url, path)}")
    return part.replace(path)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, part: Path) -> None:
    """Download the missing rest of the file to `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        have = have if resumed else 0
        total = have + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with part.open("ab" if resumed else "wb") as file, _progress(part, total, have) as bar:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def _progress(part: Path, total: int | None, have: int) -> tqdm[Any]:
    return tqdm(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=part.name.removesuffix(".part"))


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    return f"{type(error).__name__} ({error})"


def _by_hand(url: str, path: Path) -> str:
    return f"Without internet access, download {url} elsewhere and copy it to {path}."
