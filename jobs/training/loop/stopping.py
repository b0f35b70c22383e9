"""Ends a training early, with a result: by early stopping, Ctrl-C or SIGTERM, loader processes included.

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

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from jobs.training.loop.saving import step_of

HANDLED = (signal.SIGINT, signal.SIGTERM)


@HOOKS.register_module()
class StopWithoutProgress(Hook):
    """Early stopping: ends a run after `patience` validations without a better one.

    Counting starts after the warm-up, and not before any object was found: until then every result is 0.

    Not mmengine's EarlyStoppingHook: by default it ignores improvements of less than ten points of AP, and restarts counting on resume.
    Here the step of the best validation counts, which every checkpoint stores.

    Args:
        patience: number of validations.
        every: steps between validations.
        warmup: steps with a rising learning rate.
    """

    def __init__(self, patience: int, every: int, warmup: int) -> None:
        self._patience, self._every, self._warmup = patience, every, warmup

    def after_val(self, runner: Runner) -> None:
        """Stop if the best validation is too long ago."""
        measured = runner.message_hub.runtime_info
        if not measured.get("best_score", 0) > 0:
            return
        best = step_of(measured.get("best_ckpt", ""))
        if runner.iter - max(best, self._warmup) >= self._patience * self._every:
            runner.logger.info(f"No better result in {self._patience} measurements since step {best}: the training ends.")
            runner.train_loop.stop_training = True


@contextmanager
def ending_on_signals() -> Iterator[list[signal.Signals]]:
    """Within: record the first Ctrl-C or SIGTERM instead of ending at once.

    Yields: a list that gets the signal, when one comes.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():  # under Ray Train, which handles signals itself
        yield came
        return

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        restore_handlers()
        # not by the logger: the signal may have come while it writes
        os.write(2, f"{came[0].name}: the training ends after this step. A second signal ends it at once.\n".encode())

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in HANDLED}
    try:
        yield came
    finally:
        restore_handlers()


class StopOnSignal(Hook):
    """Ends the training loop after a signal.

    Args:
        came: the list of `ending_on_signals`.
    """

    def __init__(self, came: Sequence[signal.Signals]) -> None:
        self._came = came

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """End the loop after this step."""
        runner.train_loop.stop_training |= bool(self._came)

    before_train = after_val = after_train_iter  # the signal came during the setup, or during the validation


def end_loaders(runner: Runner) -> None:
    """Stop the loader processes: if they were killed at the end of this process, each would leave a folder in /tmp."""
    batches = getattr(getattr(runner, "_train_loop", None), "dataloader_iterator", None)
    loaders = getattr(batches, "_iterator", None)
    if isinstance(loaders, _MultiProcessingDataLoaderIter):
        loaders._shutdown_workers()


@FUNCTIONS.register_module()
def start_loader(worker_id: int, rank: int = 0, seed: int = 0) -> None:  # noqa: ARG001  (mmengine gives them)
    """Initialises a loader process: it ignores signals, and ends when the training process sends SIGTERM.

    A Ctrl-C in a terminal, `timeout` and systemd signal the whole group. A loader that ended then would take the last step with it.
    Samples seed themselves (`jobs.training.data.samples`).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A library's thread, which blocks nothing, may get the signal as well: torch's own handler would end the process there.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_on_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _end_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
