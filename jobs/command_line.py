"""How a command ends that cannot do what it was told: one line on stderr instead of a traceback, and an exit status.

command ─▶ OSError, ServiceError, CommandFault ─▶ "program: what was wrong", status 1
       └─▶ Ctrl-C ───────────────────────────────▶ "program: interrupted", status 130; blocks that were entered end first
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
    """A command cannot do what it was told; the message says what was wrong and what to do."""


def cli_errors(program: str, *more: type[Exception], status: int = 1) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """For a `main` that returns its exit status.

    Args:
        program: whose name the line begins with.
        more: errors that are told in a line, too; any other is a bug and keeps its traceback.
        status: of a command that failed.
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
    """A number from 1 as argparse takes it."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1 as argparse takes it."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def reason_of(error: Exception) -> str:
    """An error's message; of a file's, its name and what the system said."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
