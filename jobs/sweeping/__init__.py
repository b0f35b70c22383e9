"""Parts of `jobs.sweep`: search_space (--vary) ─▶ trials, each a run of `jobs.finetune` ─▶ report, their table and plot."""
