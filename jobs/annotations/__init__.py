"""Annotations in, one checked COCO document out: what training, evaluation and pictures read."""
