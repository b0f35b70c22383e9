"""Average models of one architecture: all weights and batch-norm statistics, each by its share.

python -m benchmarks.embedded_model.soup --out mixed.safetensors 0.7:runs/B/final.safetensors 0.3:runs/stage5/final.safetensors

With --class-bias the scores are lower or higher than the average's, in the same order, so AP stays: a model that finds more objects
than the one before it at the same threshold gets its precision back.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from jobs.command_line import cli_errors
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors


def average(parts: Sequence[tuple[float, Checkpoint]]) -> Checkpoint:
    """The weighted mean of checkpoints, with the specification of the first."""
    total = sum(share for share, _ in parts)
    first = parts[0][1]
    state = dict(first.state_dict)
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.stack([share / total * part.state_dict[name].float() for share, part in parts]).sum(0)
    return Checkpoint(first.spec, state)


def add_class_bias(checkpoint: Checkpoint, bias: float) -> Checkpoint:
    """The model with `bias` added to the logit of each class at every position."""
    is_class_bias = re.compile(r"bbox_head\.rtm_cls\.\d+\.bias").fullmatch
    state = {name: value + bias if is_class_bias(name) else value for name, value in checkpoint.state_dict.items()}
    return Checkpoint(checkpoint.spec, state)


@cli_errors("benchmarks.embedded_model.soup", ValueError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded_model.soup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="+", metavar="SHARE:FILE", help="checkpoints and their shares")
    parser.add_argument("--input-size", type=int, default=640, help="side of the network's input, pixels (default: %(default)s)")
    parser.add_argument("--class-bias", type=float, default=0.0, help="added to the logits of the classes (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    named = [part.split(":", 1) for part in args.parts]
    mixed = add_class_bias(average([(float(share), load_checkpoint(Path(file))) for share, file in named]), args.class_bias)
    save_safetensors(Checkpoint(replace(mixed.spec, input_size=args.input_size), mixed.state_dict), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
