"""What PyTorch needs several passes over memory for, in one: kernels of `cuda_kernels.cu`, compiled when the engine is made.

bias_silu       bias and SiLU after a convolution: PyTorch adds the bias in one pass and computes SiLU in the next
normalise       bytes to the network's input, with channels enough for cuDNN's fast kernels
instance_masks  the dynamic mask head with its hidden layers in registers, of the kept instances only

NVIDIA's `cuda-core` compiles them (NVRTC, which PyTorch brings with it) and starts them. Without it PyTorch's own passes do the same.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.mask_head import layers_of
from pipeline.types import MASK_STRIDE_PX

if TYPE_CHECKING:
    from cuda.core import Kernel

SOURCE = Path(__file__).with_suffix(".cu")
INPUT_CHANNELS = 8
"""Of the network's input, three of them used: 16 bytes a pixel in half precision, as tensor cores want them."""
THREADS = 256
MASK_THREADS, MASK_CELLS_A_THREAD = 128, 4  # CELLS_A_THREAD in the source
log = logging.getLogger(__name__)


def compile_kernels(dtype: torch.dtype, device: torch.device) -> CudaKernels | None:
    """The kernels for a precision on a card; None where there are none, with a line in the log that says why.

    Args:
        dtype: of the network's features, float16 or bfloat16; there are none for float32.
        device: a CUDA device, current.
    """
    if dtype == torch.float32:
        return None
    try:
        return CudaKernels(dtype, device)
    except ImportError as error:
        log.warning("cuda-core is not here (%s): the network runs up to a third slower; pip install '.[cuda]'", error)
    except Exception as error:  # whatever NVRTC or the driver says: nothing that PyTorch could not do without them
        log.warning("the CUDA kernels do not compile (%s): the network runs up to a third slower", error)
    return None


class CudaKernels:
    """Compiled kernels; each call starts one on the current stream.

    Args:
        dtype: float16 or bfloat16.
        device: a CUDA device, current.
    Raises:
        ImportError: cuda-core is not installed.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        from cuda.core import Device, Program, ProgramOptions

        Device(device.index or 0).set_current()
        defines = ["BF16"] if dtype == torch.bfloat16 else None
        major, minor = torch.cuda.get_device_capability(device)
        options = ProgramOptions(arch=f"sm_{major}{minor}", define_macro=defines)
        compiled = Program(SOURCE.read_text(encoding="ascii"), "c++", options).compile("cubin")
        self._dtype, self._device = dtype, device
        self._bias_silu, self._normalise, self._masks = map(compiled.get_kernel, ("bias_silu", "normalise", "instance_masks"))

    def bias_silu(self, features: Tensor, bias: Tensor) -> Tensor:
        """SiLU(features + bias), in place.

        Args:
            features: (B, C, H, W) of this precision, channels last in memory, C a multiple of 8.
            bias: (C,) float32.
        """
        vectors = features.numel() // 8
        self._start(self._bias_silu, _blocks(vectors), THREADS, features, bias, _int(len(bias) // 8), _int(vectors))
        return features

    def normalise(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 8, H, W) of this precision, channels last in memory; channels after the third are 0.

        Args:
            mean, std: three float32 numbers.
        """
        batch, height, width, _ = pixels.shape
        out = torch.empty((batch, height, width, INPUT_CHANNELS), dtype=self._dtype, device=pixels.device)
        count = batch * height * width
        self._start(self._normalise, _blocks(count), THREADS, pixels, mean, std, out, _int(count))
        return out.permute(0, 3, 1, 2)

    def packed_mask_logits(self, features: Tensor, kernels: Tensor, points_xy: Tensor, strides: Tensor, counts: Tensor) -> Tensor:
        """As `pipeline.mask_head.packed_mask_logits`, but that a logit that is not a number comes out as outside."""
        batch, _, height, width = features.shape
        slots, cells = len(kernels) // batch, height * width
        first, second_bias, second, third_bias, third = (part.contiguous() for part in layers_of(kernels, points_xy, strides))
        masks = torch.empty((len(kernels), height, width), dtype=torch.float16, device=features.device)
        cells_last = features.permute(0, 2, 3, 1).float().contiguous()
        blocks = -(-cells // (MASK_THREADS * MASK_CELLS_A_THREAD)), len(kernels)
        sizes = _int(slots), _int(width), _int(cells), np.float32(MASK_STRIDE_PX)
        offsets = counts.cumsum(0) - counts
        tensors = cells_last, first, second, second_bias, third, third_bias, counts, offsets, masks
        self._start(self._masks, blocks, MASK_THREADS, *tensors, *sizes)
        return masks

    def _start(self, kernel: Kernel, blocks: int | tuple[int, int], threads: int, *arguments: Any) -> None:
        from cuda.core import LaunchConfig, Stream, launch

        stream = Stream.from_handle(torch.cuda.current_stream(self._device).cuda_stream)
        plain = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
        try:
            launch(stream, LaunchConfig(grid=blocks, block=threads), kernel, *plain)
        except Exception as error:  # cuda-core's own type, which says what PyTorch's would: out of memory, or a card that is lost
            raise RuntimeError(f"CUDA error: {error}") from error


def _blocks(count: int) -> int:
    return -(-count // THREADS)


def _int(value: int) -> np.int32:
    """A C int; cuda-core takes Python's own for a pointer."""
    return np.int32(value)
