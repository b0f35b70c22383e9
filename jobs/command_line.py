"""Error handling of commands: one line on stderr and an exit status instead of a traceback.

command ─▶ OSError, ServiceError, CommandFault ─▶ "program: message", status 1
       └─▶ Ctrl-C ───────────────────────────────▶ "program: interrupted", status 130; open context managers exit first
"""

from __future__ import annotations

import argparse
import functools
import math
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec

from pipeline.errors import ServiceError

P = ParamSpec("P")


class CommandFault(Exception):
    """A command cannot run; the message says what is wrong and what to do."""


def cli_errors(program: str, *more: type[Exception], status: int = 1) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorator for a `main` that returns its exit status: prints errors in one line instead of a traceback.

    Args:
        program: name at the beginning of the line.
        more: further exception types to print in one line; all others keep their traceback.
        status: exit status of a command that failed.
    """
    caught: tuple[type[Exception], ...] = (CommandFault, ServiceError, OSError, *more)

    def wrap(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def told(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except KeyboardInterrupt:
                print(f"{program}: interrupted", file=sys.stderr)
                return 128 + signal.SIGINT
            except caught as error:
                print(f"{program}: {reason_of(error)}", file=sys.stderr)
                return status

        return told

    return wrap


def count(text: str) -> int:
    """argparse type: a whole number from 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def fraction(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def reason_of(error: Exception) -> str:
    """The message of an error; for an OSError about a file: the file's name and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
