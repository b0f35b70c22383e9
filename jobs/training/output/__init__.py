"""What a run shows and leaves: console and logs while it goes on; results, the work folder with its checkpoints and exported model."""
