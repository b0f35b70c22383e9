"""Changes to mmdet's network for training.

weights     initial_weights; layers (frozen ones, learning rates)
losses      crowds, mask_loss
numbers     precision ─▶ divergence (not finite)
memory      checkpointing
"""
