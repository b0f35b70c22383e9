"""What `jobs.finetune` runs: settings, augmentation, mmengine's Runner and the hooks around it."""
