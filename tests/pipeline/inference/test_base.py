"""Errors of the libraries are mapped to ours."""

import pytest
import torch

from pipeline.errors import EngineLost, EngineOutOfMemory
from pipeline.inference.base import mapped_errors


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_kind_of_running_out_of_memory_has_one_name(error):
    """The batcher recognises it and splits the batch; nothing holds the failed pass's tensors any more."""
    with pytest.raises(EngineOutOfMemory, match="batch of 8") as caught, mapped_errors(8):
        raise error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("uncorrectable ECC error"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_a_gpu_that_failed_is_lost(error):
    """Its replica must be replaced: every later call would fail as well."""
    with pytest.raises(EngineLost), mapped_errors(8):
        raise error


def test_other_failures_keep_their_name():
    """Only out-of-memory errors are mapped."""
    with pytest.raises(RuntimeError, match="shape"), mapped_errors(8):
        raise RuntimeError("shape mismatch")
