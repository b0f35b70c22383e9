"""The default engine on a CPU: OpenVINO, bf16 where the CPU computes in it.

    1 image       ─▶ all threads on it
    a batch of B  ─▶ B // S images on each of S streams, each with its share of the threads, post-processing included
                     └▶ what is left over: image by image as above

Streams do not wait for each other. Threads that share an image do, at every layer, and when a neighbour (a decoder, the outlines of the
last batch) takes one of two cores, the other one idles as well. Measured on 2 cores with the embedded model in batches of 8, before the
layers were packed, images/s: quiet 68 with both threads on one image, 75 with two streams; beside a neighbour that uses 60 % of a core
43 and 58.

Nor do they wait for the end of a batch: a second call takes the streams as they come free, and the engine tells when that is. Measured in
`layout: together` with 32 clients: 55 images/s when each batch waits for the one before it, 61 when not (cores busy 92 and 97 %).

The network runs one image a pass: with an open batch dimension OpenVINO copies at every change of layout. The outputs land in one
buffer, so that the post-processing sees a stream's whole share: measured with the embedded model, 1.4 ms for one image, 1.9 for four.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
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

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoEngine(BatchEngine):
    """Runs on CPU cores; see `EngineOptions` for what can be chosen.

    Raises:
        EngineUnavailable: another device is asked for.
    """

    def __init__(self, converted: ConvertedNetwork, options: EngineOptions) -> None:
        if options.device not in ("auto", "cpu"):
            raise EngineUnavailable(f"the openvino engine runs on `cpu`, not on {options.device!r}; use the torch engine there.")
        core, network = ov.Core(), converted.for_one_image()
        precision, threads = converted.precision, options.threads or owned_cores()
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
        streams = self._stream_count = min(threads, options.max_batch)
        self._postprocess = PostProcessor(converted.input_size, converted.kernels)

        def compile_streams(count: int, most_images: int) -> list[_Stream]:
            compiled = core.compile_model(network, "CPU", _properties(precision, threads, count, options.cache_dir))
            return [_Stream(compiled.create_infer_request(), network, most_images) for _ in range(count)]

        def compile_rest() -> None:
            for stream in compile_streams(streams, -(-options.max_batch // streams)) if streams > 1 else [self._alone]:
                self._idle.put(stream)

        (self._alone,) = compile_streams(1, 1 if streams > 1 else options.max_batch)
        self._idle: queue.SimpleQueue[_Stream] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="stream")
        self._compiled = self._threads.submit(compile_rest)  # meanwhile the first images are scored
        self._turn = threading.Lock()
        self._running: list[Future[Any]] = []

    def close(self) -> None:
        """End the streams' threads."""
        self._threads.shutdown()

    def run_network(self, batch: int) -> None:
        """Run the network without its post-processing on the first `batch` images of the last pass; for benchmarks."""
        self._spread(batch, lambda stream, part: stream.infer(part.stop - part.start), lambda _: None)

    def _run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object]
    ) -> list[Instances]:
        def find(stream: _Stream, part: slice) -> list[Instances]:
            outputs = stream.infer_images(images[part])
            return self._postprocess(outputs, [image.letterbox for image in images[part]], options[part])

        return [one for found in self._spread(len(images), find, has_room) for one in found]

    def _spread(self, batch: int, work: Callable[[_Stream, slice], Result], has_room: Callable[[int], object]) -> list[Result]:
        """Do a batch's work, each part as a stream comes free; results in order. Calls from several threads begin in turn."""
        with self._turn:
            self._running = [part for part in self._running if not part.done()]
            parts, left = _shares(batch, self._stream_count, quiet=not self._running)
            if parts:
                self._compiled.result()
            mine = [self._threads.submit(self._on_stream, self._idle.get(), work, part) for part in parts]
            self._running += mine
            if left:
                wait(mine)  # the threads are theirs
            alone = [work(self._alone, slice(image, image + 1)) for image in left]
        for future in mine:
            future.add_done_callback(lambda _: self._tell_of_room(has_room))
        wait(mine)  # all of them, also when one fails: nobody is told of a batch that still runs
        return [future.result() for future in mine] + alone

    def _tell_of_room(self, has_room: Callable[[int], object]) -> None:
        if not self._turn.locked():  # else the next call takes the stream that came free
            has_room(1)

    def _on_stream(self, stream: _Stream, work: Callable[[_Stream, slice], Result], part: slice) -> Result:
        try:
            return work(stream, part)
        finally:
            self._idle.put(stream)


class _Stream:
    """One infer request, and the buffers for its share of a batch.

    Args:
        request: of the network compiled for one image.
        network: for the shapes.
        most_images: in a share.
    """

    def __init__(self, request: ov.InferRequest, network: ov.Model, most_images: int) -> None:
        self._request = request
        self._pixels = np.empty((most_images, *network.input().shape[1:]), np.uint8)
        self._outputs = [np.empty((most_images, *output.shape[1:]), np.float32) for output in network.outputs]

    def infer_images(self, images: Sequence[LoadedImage]) -> RawOutputs:
        """Run the network on a share; valid until the next one."""
        pad_batch(images, self._pixels.shape[1], out=self._pixels)
        return self.infer(len(images))

    def infer(self, count: int) -> RawOutputs:
        """Run the network on the first `count` images of the buffer, one after the other."""
        for image in range(count):
            self._request.set_input_tensor(_tensor_of(self._pixels, image))
            for index, buffer in enumerate(self._outputs):
                self._request.set_output_tensor(index, _tensor_of(buffer, image))
            self._request.infer()
        return RawOutputs(*(torch.from_numpy(buffer[:count]) for buffer in self._outputs))


def _shares(batch: int, streams: int, *, quiet: bool) -> tuple[list[slice], range]:
    """How a batch is spread.

    Args:
        quiet: nothing else runs, so that all threads can go to the images that are left over by equal shares.
    Returns:
        The images of each stream that gets some, and those to run on all threads, one by one.
    """
    most, longer = divmod(batch, streams)
    left = range(batch - longer if quiet else batch, batch)
    lengths = [most + (stream < longer and not quiet) for stream in range(streams)]
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True) if length], left


def _tensor_of(buffer: NDArray[Any], image: int) -> ov.Tensor:
    """One image's part of a batch's buffer, not copied."""
    return ov.Tensor(buffer[image : image + 1], shared_memory=True)


def _properties(precision: str, threads: int, streams: int, cache_dir: Path | None) -> dict[str, object]:
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    return properties | ({"CACHE_DIR": str(cache_dir / "openvino")} if cache_dir else {})
