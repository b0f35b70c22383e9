"""Ctrl-C and SIGTERM end a training with a result, also if its loader processes receive the signal too.

first signal ─▶ ending_on_signals records it ─▶ StopOnSignal ends the loop after the current step or validation
second       ─▶ default handling: ends the process at once
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

LISTENED_TO = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_on_signals() -> Iterator[list[signal.Signals]]:
    """Within: record the first Ctrl-C or SIGTERM instead of ending at once.

    Yields: a list that gets the signal, when one comes.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():  # under Ray Train, which hears signals itself
        yield came
        return

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        listen_no_more()
        # not by the logger: the signal may have come while it writes
        os.write(2, f"{came[0].name}: the training ends after this step. A second signal ends it at once.\n".encode())

    def listen_no_more() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in LISTENED_TO}
    try:
        yield came
    finally:
        listen_no_more()


class StopOnSignal(Hook):
    """Ends the training loop after a signal.

    Args:
        came: the list of `ending_on_signals`.
    """

    def __init__(self, came: Sequence[signal.Signals]) -> None:
        self._came = came

    def before_train(self, runner: Runner) -> None:
        """Stop before the first step if the signal came during the setup."""
        self._look(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:  # noqa: ARG002
        """Stop after this step."""
        self._look(runner)

    def after_val(self, runner: Runner) -> None:
        """Stop if the signal came during the validation."""
        self._look(runner)

    def _look(self, runner: Runner) -> None:
        if self._came:
            runner.train_loop.stop_training = True


def end_loaders(runner: Runner) -> None:
    """Stop the loader processes: if they were killed at the end of this process, each would leave a folder in /tmp."""
    batches = getattr(getattr(runner, "_train_loop", None), "dataloader_iterator", None)
    loaders = getattr(batches, "_iterator", None)
    if isinstance(loaders, _MultiProcessingDataLoaderIter):
        loaders._shutdown_workers()


@FUNCTIONS.register_module()
def start_loader(worker_id: int, rank: int = 0, seed: int = 0) -> None:  # noqa: ARG001  (mmengine gives them)
    """Initialises a loader process: it ignores signals, and ends when the training process tells it to.

    A Ctrl-C in a terminal, `timeout` and systemd signal the whole group. A loader that ended then would take the last step with it.
    Samples seed themselves (`jobs.training.data.samples`).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A library's thread, which blocks nothing, may get the signal as well: torch's own handler would end the process there.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
