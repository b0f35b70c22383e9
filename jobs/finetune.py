"""Fine-tune an RTMDet-Ins model on your photos.

    python -m jobs.finetune --train train.json --train-images photos/ --val val.json --val-images photos/ --work-dir runs/mine

Training uses mmdet's transforms and losses and mmengine's Runner (`jobs.training.run`). The result is
`<work-dir>/final.safetensors` (and mmengine's own `iter_*.pth`): averaged weights, classes and configuration in one file. With --val
they are those of the best validation. Ctrl-C or SIGTERM ends a run early, with the same result and exit status 128 + signal; --resume
continues it.
"""

from __future__ import annotations

from jobs.third_party import known_warnings_ignored  # isort: skip  (before mmdet)

import sys
from collections.abc import Sequence

import torch

from jobs.command_line import DISK_FULL, print_any_name, reason_of, status_of
from jobs.training.cluster import finetune_on_cluster
from jobs.training.loop.allocator import keep_freed_memory
from jobs.training.output.results import newest_checkpoint
from jobs.training.run import finetune
from jobs.training.settings import settings_from_args
from pipeline.errors import ServiceError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    settings = settings_from_args(argv)
    print_any_name()
    keep_freed_memory()
    try:
        with known_warnings_ignored():
            if settings.processes > 1:
                finetune_on_cluster(settings)
                return 0
            stopped_by = finetune(settings)
    except KeyboardInterrupt as interrupt:
        print("jobs.finetune: ended at once; nothing more was saved.", file=sys.stderr)
        return status_of(interrupt)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(
            f"jobs.finetune: the GPU's memory does not hold a step ({reason}): --batch-size auto finds what fits; a smaller --image-size, "
            "--gradient-checkpointing and --accumulate need less.",
            file=sys.stderr,
        )
        return 2
    except (ServiceError, ValueError, OSError) as error:
        reason = reason_of(error).rstrip().rsplit("\n", 1)[-1]  # a loader process sends its whole traceback in the message
        if isinstance(error, OSError) and error.errno in DISK_FULL and newest_checkpoint(settings.work_dir):
            reason += ", with --resume"
        print(f"jobs.finetune: {reason.removeprefix('jobs.annotations.report.AnnotationsError: ')}", file=sys.stderr)
        return 2
    return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
