"""Parts of `jobs.finetune`: settings, augmentation, the configuration of mmengine's Runner, and hooks."""
