"""PyTorch engine: a CUDA card, or a CPU where OpenVINO is not wanted.

CPU    channels-last, bf16 where the CPU computes in it
CUDA   pinned memory ─copy stream─▶ slot ─▶ CUDA graph of the batch size (pipeline.engines.cuda_graphs) ─▶ post-processing
       ╰──── the next batch's copy ────╯   overlaps this batch's computing when two threads call `detect`
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.checkpoints import Checkpoint
from pipeline.engines import EngineOptions, ModelInfo
from pipeline.engines.base import BatchEngine, naming_failures
from pipeline.engines.cuda_graphs import BatchRunner, UploadSlots, default_buckets
from pipeline.engines.devices import choose_torch_device, cpu_computes_bf16, owned_cores
from pipeline.errors import EngineUnavailable
from pipeline.letterbox import pad_batch
from pipeline.network import RawNetwork
from pipeline.postprocess import PostProcessor
from pipeline.types import DetectOptions, Instances, LoadedImage

log = logging.getLogger(__name__)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine(BatchEngine):
    """Runs on one CUDA card or on CPU cores; see `EngineOptions` for what can be chosen.

    Raises:
        EngineUnavailable: CUDA or a precision is asked for that is not there.
    """

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        device = self._device = choose_torch_device(options.device)
        precision = _choose_precision(options.precision, device)
        spec, threads = checkpoint.spec, options.threads or owned_cores()
        super().__init__(
            ModelInfo(
                model=spec.name,
                classes=spec.classes,
                input_size=spec.input_size,
                engine="torch",
                precision=precision,
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                threads=threads,
                max_batch=options.max_batch,
            )
        )
        torch.set_num_threads(threads)
        if device.type == "cuda":
            # Of the whole process. The shapes are fixed and recorded, so cuDNN's search for the fastest algorithm is paid once;
            # with TF32, cuDNN's default, fp32 would have the 10 bits of mantissa of fp16.
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = precision != "fp32"
        network = RawNetwork(checkpoint.network(), spec.input_size)
        self._postprocess = PostProcessor((spec.input_size, spec.input_size), network.kernel_branch, device)
        network = network.convert(_DTYPES[precision]).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out of its types
        buckets = options.batch_buckets or default_buckets(options.max_batch)
        with self._on_device():
            self._runner = BatchRunner(network, device, buckets)
            self._slots = UploadSlots(device, (max(options.max_batch, max(buckets)), spec.input_size, spec.input_size, 3))
        self._computing = threading.Lock()

    def _run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object]
    ) -> list[Instances]:
        with self._slots.borrow() as slot, self._on_device():
            pad_batch(images, self._info.input_size, out=slot.host)
            slot.upload(len(images))
            with self._computing, slot.consumed():
                outputs = self._runner(slot.device_pixels, len(images))
                if self._device.type == "cuda":  # it computes now, and the host can fill the other slot
                    has_room(self._info.max_batch)
                return self._postprocess(outputs, [image.letterbox for image in images], options)

    def warm_up(self) -> None:
        """Record the graphs of all batch sizes, then run a grey image alone and as a full batch.

        Raises:
            EngineOutOfMemory: a full batch does not fit on the card.
        """
        with self._on_device(), naming_failures(self._info.max_batch):
            self._runner.record_all(self._info.input_size)
        super().warm_up()

    def close(self) -> None:
        """Free the card's memory, as far as this engine holds it."""
        self._runner.clear()
        self._slots.clear()

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _choose_precision(asked: str, device: torch.device) -> str:
    if device.type == "cuda":
        return "fp16" if asked == "auto" else asked
    if asked == "fp16":
        raise EngineUnavailable("the torch engine computes in fp32 or bf16 on a CPU; fp16 is for CUDA.")
    if asked != "auto":
        return asked
    if cpu_computes_bf16():
        return "bf16"
    log.warning("this CPU has no bf16 instructions: the torch engine computes in fp32")
    return "fp32"
