"""Start the service on this machine and print its progress: `make serve`.

    python -m serve_app.start [serve_config.yaml] [-v]

ray.env beside the configuration ─▶ checks ─▶ Ray ─▶ stages ─▶ "Ready: http://…" ─▶ Ctrl-C or SIGTERM ─▶ stopped

Variables that are already set take precedence over ray.env. Exit status: 0 after a stop, 1 if the service cannot start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigurationError
from serve_app.config.ray_env import set_ray_env


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "config", type=Path, nargs="?", default=Path("serve_config.yaml"), help="configuration file (default: %(default)s)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also show Ray's log")
    args = parser.parse_args(argv)
    print(f"Checking {args.config} …", flush=True)
    try:
        set_ray_env(args.config.parent / "ray.env")
        from serve_app.local_run import LocalRun  # not at the top: Ray reads the environment when it is imported

        LocalRun(args.config, verbose=args.verbose).run()
    except ConfigurationError as error:
        print(f"{args.config}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
