"""RTMDet-Ins itself: names, weights files, and the network as one plain function from pixels to flat outputs.

Never runs code from a weights file, and never sees a photo. Importing it is cheap; torch and mmdet load with the modules that need them.
"""

__all__ = ["checkpoints", "compiled_ops", "fusion", "head_outputs", "kernel_branch", "rtmdet", "rtmdet_nano", "spec", "zoo"]
