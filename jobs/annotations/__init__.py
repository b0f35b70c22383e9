"""Reads annotations in several formats and converts them to one checked COCO document, for training, evaluation and pictures."""
