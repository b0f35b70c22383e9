"""Programs around the model: fine-tune, evaluate, score in bulk. Each is `python -m jobs.<name> --help`."""
