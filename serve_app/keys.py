"""Bearer keys, read from environment variables or a file. Compared in constant time, rotated without a restart, never logged.

    python -m serve_app.keys FILE       # the id of each key, which metrics show as `caller`: id, line, name

The name is the comment above the key, if there is one. Keys are not printed.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigurationError, Unauthorized

logger = logging.getLogger("ray.serve")

_LONG_WORD = re.compile(r"\S{16,}")
"""A word of a comment that is not printed: it may be a key that was commented out."""


class FileKey(NamedTuple):
    """A key in a file: its line (from 1), the comment on the line above (else empty), and the key."""

    line: int
    name: str
    key: bytes


def read_keys(path: Path) -> list[FileKey]:
    """The keys of a file: one per line; blank lines and lines that begin with # are skipped.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read, or is not UTF-8.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = (above.lstrip("# ") if above.startswith("#") else "" for above in ("", *lines))
    numbered = enumerate(zip(lines, names, strict=False), start=1)
    return [FileKey(number, name, line.encode()) for number, (line, name) in numbered if line and not line.startswith("#")]


def key_id(key: bytes) -> str:
    """The id of a key in metrics: a hash that does not reveal it."""
    return hashlib.blake2b(key, digest_size=4, person=b"rtmdet-caller").hexdigest()


class KeyRing:
    """The keys that the endpoint accepts. With no source configured, every request is accepted.

    Args:
        keys_env: names of environment variables that each hold one key, such as a primary and a secondary one.
        keys_file: file with one key per line; blank lines and lines that begin with # are skipped. `~` is the home folder. Read again
            when it changes.
    Raises:
        ConfigurationError: a source is configured but holds no key.
    """

    def __init__(self, keys_env: Sequence[str] = (), keys_file: Path | None = None) -> None:
        missing = [name for name in keys_env if not os.environ.get(name, "").strip()]
        if missing:
            raise ConfigurationError(f"ingress.auth.keys_env: environment variable(s) not set or empty: {', '.join(missing)}.")
        self._from_env = tuple(os.environ[name].strip().encode() for name in keys_env)
        self._file = None if keys_file is None else Path(os.path.expanduser(keys_file))
        self._file_stamp: tuple[int, int, int] | None = None
        self._file_fault = ""
        self._from_file: tuple[bytes, ...] = ()
        if self._file is not None and not self._read_file():
            raise ConfigurationError(
                f"ingress.auth.keys_file: {self._file} {self._file_fault}; expected a text file with one key per line."
            )

    @property
    def is_open(self) -> bool:
        """Whether no keys are configured at all."""
        return not self._from_env and self._file is None

    def check(self, authorization: str | None) -> str:
        """Check an Authorization header.

        Every known key is compared, each in constant time, so that the response time reveals nothing about them.

        Returns:
            The id of the key; empty if there are fewer than two keys.
        Raises:
            Unauthorized: the header is missing or its key is unknown.
        """
        if self.is_open:
            return ""
        if self._file is not None:
            self._read_file()
        scheme, _, text = (authorization or "").partition(" ")
        given = text.encode("latin-1").strip()  # bytes: str.strip() would remove more than ASCII blanks
        if scheme.lower() != "bearer" or not given:
            raise Unauthorized("An Authorization header with a bearer key is required.")
        known = (*self._from_env, *self._from_file)
        matches = [hmac.compare_digest(given, key) for key in known]
        if not any(matches):
            raise Unauthorized("The bearer key is not valid.")
        return key_id(given) if len(set(known)) > 1 else ""

    def _read_file(self) -> bool:
        """Read the file if it changed; on an error keep the previous keys. Returns whether there are keys."""
        if self._file is None:
            return False
        fault = ""
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._file_stamp:
                keys = tuple(entry.key for entry in read_keys(self._file))
                if keys:
                    self._from_file, self._file_stamp = keys, stamp
                else:
                    fault = "holds no key"
        except (OSError, UnicodeDecodeError) as error:
            fault = f"cannot be read ({type(error).__name__})"
        if fault and fault != self._file_fault and self._from_file:
            logger.warning("the keys file %s %s: the previous keys stay valid; to revoke them, write new ones", self._file, fault)
        self._file_fault = fault
        return bool(self._from_file)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.keys", description="Print the id of each key of a keys file.")
    parser.add_argument("file", type=Path, help="as in ingress.auth.keys_file; /dev/stdin to read a pipe")
    path: Path = parser.parse_args(argv).file
    try:
        keys = read_keys(path)
    except (OSError, UnicodeDecodeError) as error:
        print(f"{path}: cannot be read ({type(error).__name__}); expected a text file with one key per line.", file=sys.stderr)
        return 1
    if not keys:
        print(f"{path}: holds no key.", file=sys.stderr)
        return 1
    for line, name, key in keys:
        print(f"{key_id(key)}  line {line}  {_LONG_WORD.sub('…', name)}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
