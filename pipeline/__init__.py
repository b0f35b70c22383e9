"""The image processing, without Ray: it also runs on a bare GPU machine and in a notebook.

    images  ─▶  inference  ─▶  masks          model: the network; types: the data between the steps; errors: all exceptions
                                              fair_queue: fairness between callers; compiled: loops by Numba

The `__all__` of each package lists the modules that other packages may import.
"""
