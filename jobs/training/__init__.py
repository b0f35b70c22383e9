"""Parts of `jobs.finetune`. data and network know none of the others; loop imports network; output imports loop.

settings    settings (options) ─▶ runner_config: mmengine's configuration of a run, of what the packages below register
run         puts all together: from settings to the exported model; cluster makes the same run in several processes
data        photos and annotations ─▶ samples
network     what is trained: initial weights, layers, losses, precision
loop        steps, validations and checkpoints, from the first to the last or to a signal
output      the console, logs, and the exported model
"""
