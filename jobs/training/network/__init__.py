"""Changes to mmdet's network for training.

weights     initial_weights; layers (frozen ones, learning rates, gradient checkpointing)
numbers     losses; precision (also: not finite)
"""
