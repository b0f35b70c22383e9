"""The default engine on a CPU: OpenVINO, in bf16 if the CPU supports it.

    1 image       ─▶ all threads on it
    a batch of B  ─▶ B // S images on each of S streams, each with its share of the threads, post-processing included
                     └▶ what is left over: image by image as above

Streams do not wait for each other. Threads that share an image do, at every layer; if another process (a decoder, the Polygonizer) takes
one of two cores, the other one idles as well.

A second call uses the streams as they become free, before the first batch ends; the engine reports this by `on_capacity`.

The network runs one image a pass: with an open batch dimension OpenVINO copies at every change of layout. So each image can have the
input that fits it (`letterbox.fitted_input`). It is compiled when the first image of its shape comes, while images of other shapes go on;
if it cannot be compiled, the square is used. In a stream's share of a batch, the outputs of one shape are in one buffer, which is
post-processed in one call. Measurements: docs/DESIGN.md and docs/EXPERIMENTS.md.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
from typing import Any, TypeVar

from pipeline.errors import EngineUnavailable
from pipeline.images.letterbox import fitted_input, make_letterbox
from pipeline.inference.base import BatchEngine, grey_image, mapped_errors
from pipeline.inference.devices import owned_cores
from pipeline.inference.engine import CapacityListener, EngineInfo, EngineOptions, ignore_capacity
from pipeline.inference.openvino.convert import CORE, ConvertedNetwork
from pipeline.inference.openvino.streams import CompiledNetworks, Stream
from pipeline.inference.postprocess import PostProcessor
from pipeline.model.head_outputs import RawOutputs
from pipeline.types import DetectOptions, Instances, Letterbox, LoadedImage

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class OpenVinoEngine(BatchEngine):
    """Runs on CPU cores; see `EngineOptions` for what can be chosen.

    Raises:
        EngineUnavailable: another device is asked for.
    """

    def __init__(
        self, converted: ConvertedNetwork, options: EngineOptions, on_capacity: CapacityListener = ignore_capacity
    ) -> None:
        if options.device not in ("auto", "cpu"):
            raise EngineUnavailable(f"the openvino engine runs on `cpu`, not on {options.device!r}; use the torch engine there.")
        precision, threads = converted.precision, options.threads or owned_cores()
        super().__init__(
            EngineInfo(
                model=converted.name,
                classes=converted.classes,
                input_size=converted.input_size,
                engine="openvino",
                precision=precision,
                device=CORE.get_property("CPU", "FULL_DEVICE_NAME").strip(),
                threads=threads,
                max_batch=options.max_batch,
                optimizations=("fitted_input",) if options.fitted else (),
            )
        )
        self._on_capacity = on_capacity
        streams = self._stream_count = min(threads, options.max_batch)
        self._modes = sorted({1, streams})
        self._square = converted.input_size, converted.input_size
        self._fitted, self._kernel_branch = options.fitted, converted.kernel_branch
        self._postprocessors: dict[tuple[int, int], PostProcessor] = {}
        self._compiled = CompiledNetworks(converted, threads)
        largest = self._compiled.model(1, self._square)  # a network that cannot be compiled is known at once
        self._without_input: set[tuple[int, int]] = set()
        self._alone = Stream(self._compiled, 1, 1 if streams > 1 else options.max_batch, largest)
        self._idle: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        for _ in range(streams):
            share = -(-options.max_batch // streams)
            self._idle.put(Stream(self._compiled, streams, share, largest) if streams > 1 else self._alone)
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="stream")
        self._early_compiler = ThreadPoolExecutor(len(self._modes), thread_name_prefix="compile")
        self._call_lock = threading.Lock()
        self._running: list[Future[Any]] = []
        self._closed = False

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        self._early_compiler.shutdown()
        self._threads.shutdown()

    def run_network(self, batch: int) -> None:
        """Run the network without its post-processing on the first `batch` images of the last pass over squares; for benchmarks."""
        self._spread(batch, lambda stream, part: stream.request(self._square).infer(part.stop - part.start))

    def warm_up(self) -> None:
        """Run a grey square; then compile in the background for the most common image shape, and for batches of squares."""
        with mapped_errors(1):
            self._find(self._alone, [grey_image(self._info.input_size)], [DetectOptions()])
        for original_hw in ((3, 4), (1, 1)):
            for streams in self._modes:
                self._early_compiler.submit(
                    self._prepare, self._input_of(make_letterbox(original_hw, self._info.input_size)), [streams]
                )

    def detect_leaving_room(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """See `Engine.detect_leaving_room`: each image on a stream, also if the others have nothing to do."""
        with mapped_errors(len(images)):
            return self._run(images, options, leave_room=True)

    def _run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], *, leave_room: bool = False
    ) -> list[Instances]:
        def find(stream: Stream, part: slice) -> list[Instances]:
            return self._find(stream, images[part], options[part])

        for input_hw in {self._input_of(image.letterbox) for image in images}:
            self._prepare(input_hw, self._modes)
        return [one for found in self._spread(len(images), find, leave_room=leave_room) for one in found]

    def _prepare(self, input_hw: tuple[int, int], modes: Sequence[int]) -> None:
        """Compile for these images before they take streams from others; without success they are padded to the square."""
        try:
            for streams in modes:
                self._compiled.model(streams, input_hw)
        except (MemoryError, RuntimeError):
            if input_hw == self._square:
                raise
            logger.exception(
                "cannot compile for inputs of %d x %d pixels: such images are padded to %d x %d", *input_hw, *self._square
            )
            self._without_input.add(input_hw)

    def _find(self, stream: Stream, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """Run a stream's share, shape by shape; results in order."""
        indices_of: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            indices_of.setdefault(self._input_of(image.letterbox), []).append(index)
        found: dict[int, Instances] = {}
        for input_hw, indices in indices_of.items():
            outputs = stream.request(input_hw).infer_images([images[index] for index in indices], self._info.input_size)
            letterboxes, wanted = zip(*((images[index].letterbox, options[index]) for index in indices), strict=True)
            found |= zip(indices, self._postprocess(input_hw, outputs, letterboxes, wanted), strict=True)
        return [found[index] for index in range(len(images))]

    def _postprocess(
        self, input_hw: tuple[int, int], outputs: RawOutputs, letterboxes: Sequence[Letterbox], options: Sequence[DetectOptions]
    ) -> list[Instances]:
        if input_hw not in self._postprocessors:
            self._postprocessors[input_hw] = PostProcessor(input_hw, self._kernel_branch)
        return self._postprocessors[input_hw](outputs, letterboxes, options)

    def _input_of(self, letterbox: Letterbox) -> tuple[int, int]:
        fitted = fitted_input(letterbox.scaled_hw, self._info.input_size) if self._fitted else self._square
        return self._square if fitted in self._without_input else fitted

    def _spread(self, batch: int, work: Callable[[Stream, slice], Result], *, leave_room: bool = False) -> list[Result]:
        """Do a batch's work, each part as a stream comes free; results in order. Calls from several threads begin in turn."""
        with self._call_lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._running = [part for part in self._running if not part.done()]
            parts, left = _shares(batch, self._stream_count, idle=not (self._running or leave_room))
            futures = [self._threads.submit(self._on_stream, self._idle.get(), work, part) for part in parts]
            self._running += futures
            if left:
                wait(futures)  # the threads are theirs
            alone = [work(self._alone, slice(image, image + 1)) for image in left]
        if leave_room and not self._idle.empty():
            self._on_capacity(1)
        for future in futures:
            future.add_done_callback(self._report_capacity)
        wait(futures)  # all of them, also if one fails: a batch is not reported as failed while parts of it still run
        return [future.result() for future in futures] + alone

    def _report_capacity(self, _: Future[Any]) -> None:
        if not self._call_lock.locked():  # else the next call takes the stream that came free
            self._on_capacity(1)

    def _on_stream(self, stream: Stream, work: Callable[[Stream, slice], Result], part: slice) -> Result:
        try:
            return work(stream, part)
        finally:
            self._idle.put(stream)


def _shares(batch: int, streams: int, *, idle: bool) -> tuple[list[slice], range]:
    """How a batch is spread.

    Args:
        idle: nothing else runs, so that all threads can go to the images that are left over by equal shares.
    Returns:
        The images of each stream that gets some, and those to run on all threads, one by one.
    """
    length, longer = divmod(batch, streams)
    left = range(batch - longer if idle else batch, batch)
    lengths = [length + (stream < longer and not idle) for stream in range(streams)]
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True) if length], left
