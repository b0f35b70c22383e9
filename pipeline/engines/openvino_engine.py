"""The default engine on a CPU: OpenVINO, bf16 where the CPU computes in it.

    1 image       ─▶ all threads on it
    a batch of B  ─▶ B // S images on each of S streams, each with its share of the threads, post-processing included
                     └▶ what is left over: image by image as above

Streams do not wait for each other. Threads that share an image do, at every layer, and when a neighbour (a decoder, the outlines of the
last batch) takes one of two cores, the other one idles as well. Measured on 2 cores with the embedded model in batches of 8, before the
layers were packed, images/s: quiet 68 with both threads on one image, 75 with two streams; beside a neighbour that uses 60 % of a core
43 and 58.

The network runs one image a pass: with an open batch dimension OpenVINO copies at every change of layout. The outputs land in one
buffer, so that the post-processing sees a stream's whole share: measured with the embedded model, 1.4 ms for one image, 1.9 for four.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from pipeline.engines import EngineOptions, ModelInfo
from pipeline.engines.base import BatchEngine
from pipeline.engines.devices import owned_cores
from pipeline.engines.openvino_model import ConvertedNetwork
from pipeline.errors import EngineUnavailable
from pipeline.head_outputs import RawOutputs
from pipeline.letterbox import pad_batch
from pipeline.postprocess import PostProcessor
from pipeline.types import DetectOptions, Instances, LoadedImage

Result = TypeVar("Result")

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
        core, network = ov.Core(), converted.for_one_image()
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

        def compile_model(streams: int) -> list[ov.InferRequest]:
            properties = _properties(precision, threads, streams, options.cache_dir)
            compiled = core.compile_model(network, "CPU", properties)
            return [compiled.create_infer_request() for _ in range(streams)]

        (self._alone,) = compile_model(1)
        self._stream_count = min(threads, options.max_batch)
        self._threads = ThreadPoolExecutor(self._stream_count, thread_name_prefix="stream")
        self._streams = self._threads.submit(  # meanwhile the first images are scored
            lambda: compile_model(self._stream_count) if self._stream_count > 1 else [self._alone]
        )
        self._postprocess = PostProcessor(converted.input_size, converted.kernels)
        self._pixels = np.empty((options.max_batch, converted.input_size, converted.input_size, 3), np.uint8)
        self._outputs = [np.empty((options.max_batch, *output.shape[1:]), np.float32) for output in network.outputs]
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the streams' threads."""
        self._threads.shutdown()

    def run_network(self, batch: int) -> None:
        """Run the network without its post-processing on the first `batch` images of the last pass; for benchmarks."""
        with self._lock:
            self._for_each_part(batch, self._infer)

    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        def find(request: ov.InferRequest, part: slice) -> list[Instances]:
            pad_batch(images[part], self._info.input_size, out=self._pixels[part])
            outputs = self._infer(request, part)
            return self._postprocess(outputs, [image.letterbox for image in images[part]], options[part])

        with self._lock:
            return [one for found in self._for_each_part(len(images), find) for one in found]

    def _infer(self, request: ov.InferRequest, part: slice) -> RawOutputs:
        for image in range(part.start, part.stop):
            request.set_input_tensor(_tensor_of(self._pixels, image))
            for index, buffer in enumerate(self._outputs):
                request.set_output_tensor(index, _tensor_of(buffer, image))
            request.infer()
        return RawOutputs(*(torch.from_numpy(buffer[part]) for buffer in self._outputs))

    def _for_each_part(self, batch: int, work: Callable[[ov.InferRequest, slice], Result]) -> list[Result]:
        """Do a batch's work on all streams, then what is left over image by image; results in order."""
        share = batch // self._stream_count
        parts = [slice(share * stream, share * (stream + 1)) for stream in range(self._stream_count if share else 0)]
        running = [
            self._threads.submit(work, request, part)
            for request, part in zip(self._streams.result() if parts else (), parts, strict=True)
        ]
        wait(running)  # all of them, also when one fails: the next batch takes their buffers
        left = [slice(image, image + 1) for image in range(share * len(parts), batch)]
        return [future.result() for future in running] + [work(self._alone, part) for part in left]


def _tensor_of(buffer: NDArray[Any], image: int) -> ov.Tensor:
    """One image's part of a batch's buffer, not copied."""
    return ov.Tensor(buffer[image : image + 1], shared_memory=True)


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


def _properties(precision: str, threads: int, streams: int, cache_dir: Path | None) -> dict[str, object]:
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    return properties | ({"CACHE_DIR": str(cache_dir / "openvino")} if cache_dir else {})
