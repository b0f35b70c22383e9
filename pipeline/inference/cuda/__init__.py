"""The engine for NVIDIA GPUs: network and post-processing as one CUDA graph per batch size, with our own kernels.

When an engine is created, the kernels are compared with PyTorch's operators; if one differs, none of them is used.
"""
