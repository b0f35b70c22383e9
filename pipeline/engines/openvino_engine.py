"""The default engine on a CPU: OpenVINO, bf16 where the CPU computes in it.

One compiled model with a dynamic batch dimension serves all batch sizes: measured as fast as one compiled for each size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from pipeline.engines import EngineOptions, ModelInfo
from pipeline.engines.base import BatchEngine
from pipeline.engines.devices import owned_cores
from pipeline.engines.openvino_model import ConvertedNetwork
from pipeline.errors import EngineUnavailable
from pipeline.head_outputs import RawOutputs
from pipeline.letterbox import pad_batch
from pipeline.postprocess import PostProcessor
from pipeline.types import DetectOptions, Instances, LoadedImage

log = logging.getLogger(__name__)
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoEngine(BatchEngine):
    """Runs on CPU cores; see `EngineOptions` for what can be chosen.

    Raises:
        EngineUnavailable: another device, or a precision the CPU has no instructions for, is asked for.
    """

    def __init__(self, converted: ConvertedNetwork, options: EngineOptions) -> None:
        if options.device not in ("auto", "cpu"):
            raise EngineUnavailable(f"the openvino engine runs on `cpu`, not on {options.device!r}; use the torch engine there.")
        core = ov.Core()
        precision, threads = _choose_precision(options.precision, core), options.threads or owned_cores()
        super().__init__(
            ModelInfo(
                model=converted.name,
                classes=converted.classes,
                input_size=converted.input_size,
                engine="openvino",
                precision=precision,
                device=core.get_property("CPU", "FULL_DEVICE_NAME").strip(),
                threads=threads,
                max_batch=options.max_batch,
            )
        )
        compiled = core.compile_model(converted.model, "CPU", _properties(precision, threads, options.cache_dir))
        self._request = compiled.create_infer_request()
        self._postprocess = PostProcessor(converted.input_size, converted.kernels)
        self._pixels = np.empty((options.max_batch, converted.input_size, converted.input_size, 3), np.uint8)
        self._lock = threading.Lock()

    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        with self._lock:
            pixels = pad_batch(images, self._info.input_size, out=self._pixels)
            self._request.infer([ov.Tensor(pixels, shared_memory=True)])
            outputs = RawOutputs(*(torch.from_numpy(tensor.data) for tensor in self._request.output_tensors))
            return self._postprocess(outputs, [image.letterbox for image in images], options)


def _choose_precision(asked: str, core: ov.Core) -> str:
    """The precision to compute in; `auto` is bf16 on CPUs that have it.

    Raises:
        EngineUnavailable: the CPU cannot compute in the precision that was asked for.
    """
    if asked == "int8":
        # Tried with NNCF on the embedded model (200 training photos): not faster than bf16 on a CPU with AMX.
        raise EngineUnavailable("detector.precision: there are no int8 models; use auto, which is bf16 where the CPU has it.")
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked == "auto":
        if "BF16" in able:
            return "bf16"
        log.warning("this CPU has no bf16 instructions: the openvino engine computes in fp32, at about half the speed")
        return "fp32"
    if asked != "fp32" and asked.upper() not in able:
        raise EngineUnavailable(
            f"detector.precision: this CPU has no {asked} instructions ({', '.join(able)}); use auto or fp32."
        )
    return asked


def _properties(precision: str, threads: int, cache_dir: Path | None) -> dict[str, object]:
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    return properties | ({"CACHE_DIR": str(cache_dir / "openvino")} if cache_dir else {})
