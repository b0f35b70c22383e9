"""Write a checkpoint whose batch norms an export had folded away, with batch norms that can be trained (batch_norm.py says how).

python -m benchmarks.embedded_model.restore --base exported.pth --train train.json --train-images photos/ --out restored.safetensors
"""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.embedded_model.batch_norm import restore_batch_norms
from benchmarks.embedded_model.merge import add_photos, training_batches
from jobs.command_line import cli_errors
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors


@cli_errors("benchmarks.embedded_model.restore", ValueError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded_model.restore", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--base", type=Path, required=True, help="the checkpoint (.pth or .safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="the same model, .safetensors")
    add_photos(parser)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as scratch, known_warnings_ignored():
        base = load_checkpoint(options.base)
        network = base.network()
        restored = restore_batch_norms(network, training_batches(options, Path(scratch), base))
        save_safetensors(Checkpoint(base.spec, network.state_dict()), options.out)
    print(f"{options.out}: {restored} batch norms restored.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
