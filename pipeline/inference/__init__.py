"""Runs the network: batching, the engines (OpenVINO, CUDA, torch, simulated) and post-processing.

Takes LoadedImages, returns Instances. Engines do not decode images, do not make full-size masks, and do not know about requests. Their
libraries are imported when an engine is created.
"""

__all__ = [
    "batch_queue",
    "batcher",
    "create",
    "cuda",
    "devices",
    "engine",
    "instance_masks",
    "lost_device",
    "mask_head",
    "openvino",
    "postprocess",
    "selection",
]
