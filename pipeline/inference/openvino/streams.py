"""Streams of the OpenVINO engine: the network compiled for each input shape, and each stream's buffers."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from pipeline.images.letterbox import pad_batch
from pipeline.inference.openvino.convert import CORE, ConvertedNetwork
from pipeline.model.head_outputs import RawOutputs
from pipeline.types import LoadedImage

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class CompiledNetworks:
    """The network for one image, compiled for an input shape when it is first asked for.

    Args:
        converted: the network.
        threads: for all streams together.
    """

    def __init__(self, converted: ConvertedNetwork, threads: int) -> None:
        self._converted, self._threads = converted, threads
        self._models: dict[tuple[int, tuple[int, int]], ov.CompiledModel] = {}
        self._locks: dict[tuple[int, tuple[int, int]], threading.Lock] = {}

    def model(self, streams: int, input_hw: tuple[int, int]) -> ov.CompiledModel:
        """For that many streams; the first call compiles, and others for the same wait for it."""
        key = streams, input_hw
        if key not in self._models:
            with self._locks.setdefault(key, threading.Lock()):
                if key not in self._models:
                    self._models[key] = self._compile(*key)
        return self._models[key]

    def _compile(self, streams: int, input_hw: tuple[int, int]) -> ov.CompiledModel:
        properties = _properties(self._converted.precision, self._threads, streams)
        return CORE.compile_model(self._converted.for_one_image(input_hw), "CPU", properties)


class Stream:
    """Runs the network on its share of a batch, on its share of the threads.

    Its buffers are shared by all shapes: a stream runs one at a time.

    Args:
        compiled: for the shapes of the images that come.
        streams: among which the threads are divided.
        max_images: in a share.
        largest: compiled for the largest shape.
    """

    def __init__(self, compiled: CompiledNetworks, streams: int, max_images: int, largest: ov.CompiledModel) -> None:
        self._compiled, self._streams, self._max_images = compiled, streams, max_images
        self._pixels = np.empty(max_images * math.prod(largest.input().shape), np.uint8)
        self._outputs = [np.empty(max_images * math.prod(output.shape), np.float32) for output in largest.outputs]
        self._requests: dict[tuple[int, int], InferRequest] = {}

    def request(self, input_hw: tuple[int, int]) -> InferRequest:
        """For images of this shape; made for the first one."""
        if input_hw not in self._requests:
            model = self._compiled.model(self._streams, input_hw)
            pixels, *outputs = (
                flat[: self._max_images * math.prod(port.shape)].reshape(self._max_images, *port.shape[1:])
                for flat, port in zip((self._pixels, *self._outputs), (model.input(), *model.outputs), strict=True)
            )
            self._requests[input_hw] = InferRequest(model, pixels, outputs)
        return self._requests[input_hw]


class InferRequest:
    """One infer request for one input shape.

    Args:
        compiled: the network for one image.
        pixels, outputs: buffers for a share of a batch; image by image.
    """

    def __init__(self, compiled: ov.CompiledModel, pixels: NDArray[np.uint8], outputs: Sequence[NDArray[np.float32]]) -> None:
        self._request = compiled.create_infer_request()
        self._pixels, self._outputs = pixels, outputs

    def infer_images(self, images: Sequence[LoadedImage], size: int) -> RawOutputs:
        """Run the network on images made for this `size`; valid until the stream's next call."""
        pad_batch(images, size, out=self._pixels)
        return self.infer(len(images))

    def infer(self, count: int) -> RawOutputs:
        """Run the network on the first `count` images of the buffer, one after the other."""
        for image in range(count):
            self._request.set_input_tensor(_tensor_of(self._pixels, image))
            for index, buffer in enumerate(self._outputs):
                self._request.set_output_tensor(index, _tensor_of(buffer, image))
            self._request.infer()
        return RawOutputs(*(torch.from_numpy(buffer[:count]) for buffer in self._outputs))


def _tensor_of(buffer: NDArray[Any], image: int) -> ov.Tensor:
    """One image's part of a batch's buffer, not copied."""
    return ov.Tensor(buffer[image : image + 1], shared_memory=True)


def _properties(precision: str, threads: int, streams: int) -> dict[str, object]:
    """Without `CACHE_DIR`: OpenVINO's cached models have no checksum (a damaged one scores wrongly) and save 0.1 to 0.2 s of CPU."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
