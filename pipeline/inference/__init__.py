"""From network inputs to kept instances: batching, the engines (OpenVINO, CUDA, torch, simulated) and post-processing.

An engine never decodes a photo, never makes a full-size mask, and never knows who asked. Engines load when they are made.
"""

__all__ = ["batch_queue", "batcher", "cuda", "devices", "engine", "mask_head", "nms", "openvino", "postprocess"]
