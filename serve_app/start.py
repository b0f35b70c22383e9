"""Start the service on this machine and print its progress: `make serve`.

    python -m serve_app.start [serve_config.yaml] [-v]

ray.env beside the configuration ─▶ checks ─▶ Ray ─▶ stages ─▶ "Ready: http://…" ─▶ Ctrl-C or SIGTERM ─▶ stopped

Variables that are already set take precedence over ray.env. Exit status: 0 after a stop, 1 if the service cannot start.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigurationError


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument("-v", "--verbose", action="store_true", help="also show Ray's log")
    args = parser.parse_args(argv)
    print(f"Checking {args.config} …", flush=True)
    try:
        read_ray_env(args.config.parent / "ray.env")
        from serve_app.local_run import LocalRun  # not at the top: Ray reads the environment when it is imported

        LocalRun(args.config, verbose=args.verbose).run()
    except ConfigurationError as error:
        print(f"{args.config}: {error.message}", file=sys.stderr)
        return 1
    return 0


def read_ray_env(path: Path) -> None:
    """Set the environment variables in `path` that are not set yet; a missing file is no error. Raises as `ray_env`."""
    for name, value in ray_env(path).items():
        os.environ.setdefault(name, value)


def ray_env(path: Path) -> dict[str, str]:
    """The variables in a file of lines NAME=value, read as a shell does: with comments, and quotes around values with spaces or newlines.

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


if __name__ == "__main__":
    sys.exit(main())
