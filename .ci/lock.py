"""Pins every dependency but torch, with its hash: pip's own resolution of `.[dev]`, written to requirements.lock.

    make lock                                                         after a change of pyproject.toml
    pip install --require-hashes --no-deps -r requirements.lock       what CI does (make locked)
    pip-audit --require-hashes --disable-pip -r requirements.lock     known holes; asks the network

One wheel of each package, for Linux x86-64 and CPython 3.11, as pypi.org has them, whatever mirrors this machine uses.
torch's version is pinned in pyproject.toml. It has no hash here because its CPU build and its CUDA build are different
files with different dependencies, from different places, and pip prefers the CUDA build of gigabytes wherever both fit.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LOCK = REPOSITORY / "requirements.lock"
LEFT_OUT = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
HEAD = """\
# Made by `make lock` for Linux x86-64 and CPython 3.11; everything but torch (.ci/lock.py says why).
# Install: pip install --require-hashes --no-deps -r requirements.lock
"""


def resolve(*arguments: str) -> list[tuple[str, str, str]]:
    """Name, version and SHA-256 of each package that pip would install from pypi.org."""
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *arguments]
    report = json.loads(subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, capture_output=True).stdout)
    return sorted(_pin(item) for item in report["install"] if "dir_info" not in item["download_info"])


def _pin(item: dict) -> tuple[str, str, str]:
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    return name, item["metadata"]["version"], item["download_info"]["archive_info"]["hashes"]["sha256"]


def main() -> None:
    """Resolve and write."""
    pins = [pin for pin in resolve(".[dev]") if not LEFT_OUT.fullmatch(pin[0])]
    lines = [f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in pins]
    LOCK.write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
