"""What commands share: errors as one line on stderr and an exit status instead of a traceback; progress.

command ─▶ OSError, ServiceError, CommandFault ─▶ "program: message", status 1
       └─▶ Ctrl-C, SIGTERM ──────────────────────▶ "program: interrupted", status 130 or 143; open context managers exit first
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import ParamSpec, TypeVar

from tqdm import tqdm

from pipeline.errors import ServiceError

P = ParamSpec("P")
T = TypeVar("T")
LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where stderr is not a terminal."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
            print_any_name()
            try:
                with interrupted_by_sigterm():
                    return main(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                print(f"{program}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
                return status_of(interrupt)
            except caught as error:
                print(f"{program}: {reason_of(error)}", file=sys.stderr)
                return status

        return wrapper

    return wrap


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | str | None]) -> None:
    """Refuse to write over a file that the command reads, two outputs to one file, or a file where a folder is.

    Args:
        outputs: files to write, by argument; None for those not asked for.
        inputs: what the command reads, by argument; names that are not files are ignored.
    Raises:
        CommandFault: two arguments are the same file, also by links, or an output is a folder.
    """
    seen = {Path(path).resolve(): name for name, path in inputs.items() if path is not None and Path(path).is_file()}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise CommandFault(f"{name}: {path} is a folder: name a file in it")
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise CommandFault(
                f"{name} and {other} are the same file, {path}: nothing was read or written. Choose another {name}"
            )


class Terminated(KeyboardInterrupt):
    """SIGTERM came: it ends a command as Ctrl-C does, so that files are closed and what is done is kept."""


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Exit status of a command that a signal ended, as shells give it."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within: SIGTERM raises Terminated in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def raise_terminated(*_: object) -> None:
    """Handler of SIGTERM (`ray_session` sets it again after `ray.init`).

    Raises:
        Terminated: always.
    """
    raise Terminated


def print_any_name() -> None:
    """Let stdout print names of files that are not UTF-8, as escapes; stderr does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_progress(line: object) -> None:
    """Print a line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def progress(items: Iterable[T], unit: str = "photo", total: int | None = None) -> Iterator[T]:
    """Yield the items, and show on stderr how far it is: by a bar on a terminal, else by a line every `LINE_EVERY_S` seconds.

    Args:
        unit: what an item is.
        total: number of items, if they do not know it.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, unit=unit, total=total)
        return
    of = f" of {total:,}" if total or (total := len(items) if isinstance(items, Sized) else 0) else ""
    began = last_line_at = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - last_line_at >= LINE_EVERY_S:
            last_line_at = now
            print(f"{done:,}{of} {unit}s, {done / (now - began):.2g} {unit}s/s", file=sys.stderr, flush=True)
        yield item


def count(text: str) -> int:
    """argparse type: a whole number from 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def count_from_0(text: str) -> int:
    """argparse type: a whole number from 0."""
    return 0 if text == "0" else count(text)


def amount(text: str, end: float = sys.float_info.max, range_: str = "from 0") -> float:
    """argparse type: a finite number from 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= end:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {range_}")
    return number


def positive(text: str) -> float:
    """argparse type: a finite number above 0."""
    if not (number := amount(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def fraction(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return amount(text, 1, "from 0 to 1")


@contextmanager
def naming(path: str | PathLike[str], *, instead_of: str | PathLike[str] | None = None) -> Iterator[None]:
    """Within: an OSError that names no file, such as that of writing to an open file, names this one.

    Args:
        instead_of: a file that users do not know, which is not named either.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and error.filename != str(instead_of)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def reason_of(error: BaseException) -> str:
    """The message of an error; for an OSError about a file: the file's name and the reason; on a full disk also what to do."""
    if not isinstance(error, OSError):
        return str(error)
    what = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    return f"{what}. Free space there, then give the same command again" if error.errno in DISK_FULL else what
