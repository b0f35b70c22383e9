"""The recipe of the embedded model, where it needs more than `jobs.finetune`; the model card has the commands."""
