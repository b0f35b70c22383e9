"""Parts of `jobs.finetune`.

settings    settings (options) ─▶ runner_config: mmengine's configuration of a run
photos      split ─▶ samples ─▶ augment (outline_masks); seen_objects ends a run that does not see them
network     initial_weights, precision, checkpointing, crowds, mask_loss
loop        batch_size, allocator, loop, hooks, stopping, interruption
measuring   validation, console, logs
result      results
more runs   cluster: one run in several processes
"""
