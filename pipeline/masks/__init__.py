"""From low-resolution mask logits to outlines, COCO RLE, JSON and pictures, in coordinates of the original photo.

Never makes a full-size mask where serving runs, and never returns an outline that crosses itself.
"""

__all__ = ["draw", "encode", "rle"]
