"""Parts of `jobs.sweep`: search_space (--vary) ─▶ trials, each a run of `jobs.finetune`, their table and plot."""
