"""Turns low-resolution mask logits into polygons, COCO RLE, JSON and pictures, in coordinates of the original image.

Serving never creates a full-size mask, and returned polygons never intersect themselves.
"""

__all__ = ["draw", "encode", "rle"]
