"""RTMDet-Ins: model names, weights files, and the network as one function from pixels to flat outputs.

Never executes code from a weights file. Importing it is cheap; torch and mmdet are imported with the modules that need them.
"""

__all__ = [
    "checkpoints",
    "compiled_ops",
    "fusion",
    "head_outputs",
    "kernel_branch",
    "rtmdet",
    "rtmdet_nano",
    "spec",
    "unpickling",
    "zoo",
]
