"""NVIDIA Triton by nvidia-pytriton: HTTP and batching in Triton's C++ server, the pipeline in a Python function that it calls.

    .venv-peers/bin/python -m benchmarks.peers.pytriton --port 9006

Triton has its own request format, JSON with tensors (benchmarks/peers/triton_wire.py). The tensors hold base64 strings, as the other
servers' requests do. Its dynamic batcher forms batches of at most --max-batch as soon as the function is free, which is its default.
Metrics and gRPC are off. It needs numpy 1, and therefore its own virtual environment: see docs/LOADTEST.md.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.scoring import Scorer, arguments
from benchmarks.peers.triton_wire import TRITON_MODEL


def scoring_function(scorer: Scorer) -> Any:
    """What Triton calls with a batch: base64 texts (B, 1) to JSON texts (B, 1), both bytes in arrays of objects."""

    @batch
    def score(image: np.ndarray) -> list[np.ndarray]:
        found = scorer.detect([scorer.load(text) for text in image[:, 0]])
        return [np.array([[scorer.outline(instances)] for instances in found], dtype=object)]

    return score


if __name__ == "__main__":
    args = arguments(__doc__)
    # Triton's Python process loads a libpython by its name; another one than this interpreter's does not fit its standard library.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    scorers = [Scorer(args.model, args.max_batch, args.threads) for _ in range(args.workers)]
    config = TritonConfig(
        http_address="127.0.0.1", http_port=args.port, allow_grpc=False, allow_metrics=False, log_verbose=0, exit_on_error=True
    )
    workspace = Path(tempfile.mkdtemp(), "workspace")  # must not be there; by default it is in the home folder
    with Triton(config=config, workspace=workspace) as triton:
        triton.bind(
            model_name=TRITON_MODEL,
            infer_func=[scoring_function(scorer) for scorer in scorers],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="boxes", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=args.max_batch, batcher=DynamicBatcher()),
            strict=False,
        )
        triton.serve()
