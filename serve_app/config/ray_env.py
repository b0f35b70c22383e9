"""Reads ray.env, the environment variables that Ray needs, as a shell reads it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pipeline.errors import ConfigurationError


def read_ray_env(path: Path) -> dict[str, str]:
    """The variables in a file of lines NAME=value, with comments, and quotes around values with spaces or newlines.

    A missing file has none.

    Raises:
        ConfigurationError: a quote is not closed, or the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read as UTF-8 text: {error}") from error
    words: list[str] = []
    unread, first, fault = "", 0, ""
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        unread, first = unread + line, first if unread else number
        try:
            words += shlex.split(unread, comments=True)
            unread = ""
        except ValueError as error:  # the value may go on in the next line
            fault = str(error)
    if unread:
        raise ConfigurationError(f"{path.name}, line {first}: {fault}; expected NAME=value")
    return {name: value for name, equals, value in (word.partition("=") for word in words) if equals}


def set_ray_env(path: Path) -> None:
    """Set the variables of the file that are not set yet. Call it before Ray is imported: Ray reads the environment then.

    Raises:
        ConfigurationError: as `read_ray_env`.
    """
    for name, value in read_ray_env(path).items():
        os.environ.setdefault(name, value)
