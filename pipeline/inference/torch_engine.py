"""Engine that runs PyTorch on a CPU, without OpenVINO: channels last, in bf16 if the CPU supports it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import EngineUnavailable
from pipeline.images.letterbox import pad_batch
from pipeline.inference.base import TORCH_DTYPES, BatchEngine, torch_engine_info
from pipeline.inference.devices import cpu_computes_bf16
from pipeline.inference.engine import EngineOptions
from pipeline.inference.postprocess import PostProcessor
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, Instances, LoadedImage

logger = logging.getLogger(__name__)


class TorchEngine(BatchEngine):
    """Runs on CPU cores; see `EngineOptions` for what can be chosen.

    Raises:
        EngineUnavailable: the CPU does not support the precision.
    """

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        precision = _choose_precision(options.precision)
        spec = checkpoint.spec
        super().__init__(torch_engine_info(spec, options, precision, "cpu"))
        torch.set_num_threads(self._info.threads)
        network = RawNetwork(checkpoint.network(), spec.input_size)
        self._postprocess = PostProcessor((spec.input_size, spec.input_size), network.kernel_branch)
        network.convert(TORCH_DTYPES[precision])
        if precision == "bf16":
            network.backbone.stem = Float32Layers(network.backbone.stem)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out of its types
        self._computing = threading.Lock()

    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        pixels = torch.from_numpy(pad_batch(images, self._info.input_size))
        with self._computing, torch.inference_mode():
            outputs = self._network(pixels)
            return self._postprocess(outputs, [image.letterbox for image in images], options)


class Float32Layers(nn.Module):
    """Layers that compute in float32 between others in bf16; their weights have been rounded to bf16.

    For the stem, as its rounding errors reach all later layers: saves 0.1 of box AP and 0.3 of mask AP (docs/EXPERIMENTS.md) for a tenth
    more time.

    Args:
        layers: already converted.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers.float()

    def forward(self, features: Tensor) -> Tensor:
        """Run the layers; features (B, C, H, W) in and out have the same dtype, bf16."""
        outputs: Tensor = self.layers(features.float())
        return outputs.to(features.dtype)


def _choose_precision(asked: str) -> str:
    if asked == "fp16":
        raise EngineUnavailable("the torch engine computes in fp32 or bf16 on a CPU; fp16 is for CUDA.")
    if asked != "auto":
        return asked
    if cpu_computes_bf16():
        return "bf16"
    logger.warning("this CPU has no bf16 instructions: the torch engine computes in fp32")
    return "fp32"
