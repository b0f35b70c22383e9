"""The engine on a CUDA card: network and post-processing as one CUDA graph for each batch size, with kernels of our own.

Kernels are compared with PyTorch's operators when an engine is made; one that differs is left out.
"""
