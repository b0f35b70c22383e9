"""Compiles all loops into Numba's cache, so that no replica has to: half a minute of a core.

    python -m pipeline.precompile

`make serve` runs it while Ray starts, deploy/Dockerfile when the image is built.
"""

from pipeline.compiled import is_cached
from pipeline.inference import selection
from pipeline.masks import encode

if __name__ == "__main__":
    if not is_cached(selection.__package__):
        from pipeline.inference import postprocess  # it imports PyTorch: two seconds

        postprocess.load_loops()
    if not is_cached(encode.__package__):
        encode.load_loops()
