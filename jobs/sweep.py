"""Search training settings with Ray Tune: short runs of jobs.finetune, a table and a plot, the best model.

    python -m jobs.sweep --trials 6 --train train.json --train-images photos/ --val-share 0.2 --work-dir runs/sweep --steps 100
    python -m jobs.sweep --trials 20 --search bayes --asha --vary lr=5e-4..8e-3 --vary image-size=480,640 --vary freeze=none,backbone …

--vary NAME=LOW..HIGH is a range (on a logarithmic scale where HIGH is ten times LOW or more), NAME=A,B,C is a choice; NAME is any option of
jobs.finetune but those of the data, the metric and the folder; `none` leaves it out, `on` gives a switch. All other arguments are those of
jobs.finetune, the same in each trial.
The first trial has the settings as given, without --vary, if these are among the values: the best trial is never worse than they are.

    work-dir/trials.csv    a row for each trial: settings, AP, steps, seconds, peak memory, checkpoint; sorted by AP
    work-dir/trials.png    AP over the steps of each trial, and over each setting
    work-dir/<trial>/      the trial's own work folder; the best one's final.safetensors is printed
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.annotations.report import AnnotationsError
from jobs.command_line import CommandFault, cli_errors, count
from jobs.sweeping.search_space import TABLE, as_options, checked_values, read_space
from jobs.training.settings import settings_from_args

SPACE = ("lr=1e-3..1e-2", "mosaic=0..1", "scale-jitter=0.5+2,0.8+1.25")
"""What is varied unasked."""


@cli_errors("jobs.sweep", AnnotationsError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 there is a best model, 1 there is none or the data are refused, 2 wrong arguments."""
    parser = _parser()
    args, of_finetune = parser.parse_known_args(argv)
    for package, needed in (("pyarrow", True), ("optuna", args.search == "bayes")):
        if needed and importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: .venv/bin/pip install -e '.[sweep]'")
    try:
        space = read_space(args.vary or SPACE)
    except ValueError as error:
        parser.error(str(error))
    settings = settings_from_args(of_finetune)
    if not (settings.val or settings.val_share):
        parser.error("trials are compared by what they measure: give --val and --val-images, or --val-share")
    if args.asha and not settings.steps:
        parser.error("--asha compares trials at the same step: say how many with --steps")
    if (settings.work_dir / TABLE).exists():
        parser.error(f"--work-dir: {settings.work_dir} already holds a sweep; take another folder")
    if settings.processes > 1 or settings.resume:
        parser.error("--processes and --resume do not go with a sweep: a trial is one process, and begins anew")
    for name, values in space.items():
        for value in checked_values(values):
            settings_from_args([*of_finetune, *as_options({name: value})])  # says what is wrong, and exits
    from jobs.sweeping.trials import run_trials
    from jobs.training.run import read_sets

    with tempfile.TemporaryDirectory() as scratch:  # a fault in the data ends the sweep, not each trial
        *_, copies = read_sets(replace(settings, work_dir=Path(scratch)))
    best = run_trials(args, of_finetune, space, settings, copies)
    if best is None:
        raise CommandFault(f"no trial has found anything; {settings.work_dir / TABLE} says how each ended")
    print(best)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.sweep",
        description=(__doc__ or "").splitlines()[0],
        epilog="All other arguments are those of jobs.finetune (python -m jobs.finetune --help), the same in each trial.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--vary",
        action="append",
        metavar="NAME=LOW..HIGH | NAME=A,B,C",
        help=f"an option of jobs.finetune; give it once for each (default: {' '.join(SPACE)}); a list of values is joined by +",
    )
    add("--trials", type=count, default=6, help="(default: %(default)s)")
    add("--search", choices=["random", "bayes"], default="random", help="bayes: Optuna's TPE (default: %(default)s)")
    add("--asha", action="store_true", help="stop trials early that are worse than others at the same step (ASHA)")
    add("--cpus-per-trial", type=float, help="(default: all of the machine, or its share for each GPU)")
    add("--gpus-per-trial", type=float, help="(default: 1 if there is one)")
    add(
        "--memory-gb-per-trial",
        type=float,
        default=0,
        help="reserved, so that no more run at once than fit (default: 0, not reserved)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
