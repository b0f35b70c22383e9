"""mmengine's training loop, counted in optimizer steps, with gradient accumulation and exact resuming."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

from typing import Any

from mmengine.dist import all_reduce_dict
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop


@LOOPS.register_module()
class StepLoop(IterBasedTrainLoop):
    """Trains for `max_iters` optimizer steps, which mmengine's hooks and schedules count too.

    When a run is resumed, the sampler starts at the right sample (`jobs.training.data.samples`), so nothing is skipped here.

    Args:
        accumulate: batches per optimizer step.
        more: as of mmengine's loop.
    """

    def __init__(self, *more: Any, accumulate: int = 1, **how: Any) -> None:
        super().__init__(*more, **how)
        self._accumulate = accumulate

    def run(self) -> Any:
        """Train until the last step, or until a hook says stop; measure every `val_interval` steps and at the end."""
        runner = self.runner
        runner.optim_wrapper.initialize_count_status(
            runner.model, self._iter * self._accumulate, self._max_iters * self._accumulate
        )
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            if runner.val_loop is not None and (self._iter % self.val_interval == 0 or self._iter == self._max_iters):
                runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def run_iter(self, data_batch: Any) -> None:
        """One optimizer step."""
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs = [runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)]
        for _ in range(self._accumulate - 1):
            outputs.append(runner.model.train_step(next(self.dataloader_iterator), optim_wrapper=runner.optim_wrapper))
        means: dict[str, Any] = {name: sum(losses[name] for losses in outputs) / len(outputs) for name in outputs[0]}
        all_reduce_dict(means, "mean")  # of all processes: each has its own share of the photos
        runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=means)
        self._iter += 1
