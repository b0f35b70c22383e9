"""The engine for GPUs: one CUDA graph per batch size, from pixels to instances.

images ─▶ pinned memory ─▶ GPU: normalise ─▶ network ─▶ FixedPostProcessor ─▶ pinned memory ─▶ Instances
          ╰ the next batch is copied while this one is computed, if two threads call `detect` ╯
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import EngineOutOfMemory, EngineUnavailable
from pipeline.images.letterbox import pad_batch
from pipeline.inference.base import TORCH_DTYPES, BatchEngine, grey_image, mapped_errors, torch_engine_info
from pipeline.inference.cuda.graphs import BatchGraphs, cudnn_at_its_fastest, default_buckets
from pipeline.inference.cuda.network import with_kernels
from pipeline.inference.cuda.postprocess import (
    MAX_INSTANCES,
    FixedPostProcessor,
    FixedResults,
    encode_options,
    to_instances,
)
from pipeline.inference.cuda.slots import Slot, Slots
from pipeline.inference.engine import CapacityListener, EngineOptions, ignore_capacity
from pipeline.inference.postprocess import PostProcessor
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.head_outputs import RawOutputs
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, Instances, Letterbox, LoadedImage

logger = logging.getLogger(__name__)

BF16_SINCE = (8, 0)
"""Compute capability: GPUs before Ampere have no bf16, although PyTorch reports it as supported (by emulation)."""


class CudaEngine(BatchEngine):
    """Runs on one GPU; see `EngineOptions`.

    Args:
        checkpoint: model and weights.
        options: precision `auto` is fp16.
        device: the GPU.
        on_capacity: called when the GPU computes and the next batch's buffers can be filled.
    Raises:
        EngineUnavailable: this PyTorch or precision does not run on the GPU, or a kernel made it unusable.
        EngineOutOfMemory: the largest batch does not fit on the GPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: EngineOptions,
        device: torch.device,
        on_capacity: CapacityListener = ignore_capacity,
    ) -> None:
        precision = "fp16" if options.precision == "auto" else options.precision
        spec, dtype = checkpoint.spec, TORCH_DTYPES[precision]
        if precision == "bf16" and torch.cuda.get_device_capability(device) < BF16_SINCE:
            name = torch.cuda.get_device_name(device)
            raise EngineUnavailable(f"detector.precision: {name} cannot compute in bf16; use auto, fp16 or fp32.")
        super().__init__(torch_engine_info(spec, options, precision, torch.cuda.get_device_name(device)))
        self._device, self._on_capacity = device, on_capacity
        refuse_unusable(device)
        with self._starting():
            self._prepare(checkpoint, options, dtype)
        self._slots = Slots(self._make_slot)
        self._computing = threading.Lock()

    def _prepare(self, checkpoint: Checkpoint, options: EngineOptions, dtype: torch.dtype) -> None:
        spec, device = checkpoint.spec, self._device
        network = RawNetwork(checkpoint.network(), spec.input_size).convert(dtype).to(device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out of its types
        buckets = options.batch_buckets or default_buckets(options.max_batch)
        with torch.cuda.device(device):
            kernels = None
            if options.cuda_kernels:
                ends = sorted({min(buckets), max(buckets)})
                with cudnn_at_its_fastest(tf32=True):  # kernels also choose the faster way here
                    self._network, kernels = with_kernels(self._network, spec.input_size, ends, dtype, device)
            self._optimizations = ("cuda_kernels",) if kernels is not None else ()
            input_hw, branch = (spec.input_size, spec.input_size), network.kernel_branch.convert(dtype, from_channels=0)
            own = (kernels.greedy_nms, kernels.packed_mask_logits) if kernels is not None else ()
            self._postprocess = FixedPostProcessor(input_hw, branch, device, *own)
            self._exact_postprocess = PostProcessor(input_hw, branch, device)
            # With TF32, cuDNN's default, fp32 would have the 10 bits of mantissa of fp16.
            whole, tf32 = grey_image(spec.input_size).letterbox, dtype != torch.float32
            (trial,) = encode_options([whole], [DetectOptions(0.0)], len(spec.classes))
            self._graphs = BatchGraphs(self._compute, device, buckets, spec.input_size, trial, tf32)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Within: as `mapped_errors`, and a lack of memory is reported with remedies."""
        max_batch = self._info.max_batch
        try:
            with mapped_errors(max_batch):
                yield
        except EngineOutOfMemory as error:
            remedy = f"lower detector.max_batch, now {max_batch}, or let nothing else use this GPU (num_gpus: 1)"
            raise EngineOutOfMemory(f"{error.message}; {remedy}") from None

    def _make_slot(self) -> Slot:
        with self._computing:  # it may record a graph, and nothing else may run on that stream meanwhile
            return self._graphs.slot()

    def _compute(self, pixels: Tensor, image_options: Tensor) -> tuple[RawOutputs, FixedResults]:
        raw = self._network(pixels)
        return raw, self._postprocess(raw, image_options)

    def _run(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        count, letterboxes = len(images), [image.letterbox for image in images]
        with torch.cuda.device(self._device), self._slots.borrow() as slot:
            pad_batch(images, self._info.input_size, out=slot.host_pixels)
            encode_options(letterboxes, options, len(self._info.classes), out=slot.host_options)
            slot.upload(count)
            with self._computing:
                self._graphs.run(slot, count)
            self._on_capacity(self._info.max_batch)  # the GPU computes now, and the host can fill the other slot
            summary, masks = slot.download([letterbox.mask_grid_hw for letterbox in letterboxes])
            found = to_instances(summary, masks, letterboxes)
            beyond = [n for n in range(count) if not summary[n, 1] or options[n].max_detections > MAX_INSTANCES]
            if beyond:
                exactly = self._run_exactly(slot, count, beyond, letterboxes, options)
                for index, instances in zip(beyond, exactly, strict=True):
                    found[index] = instances
            return found

    def _run_exactly(
        self,
        slot: Slot,
        count: int,
        places: Sequence[int],
        letterboxes: Sequence[Letterbox],
        options: Sequence[DetectOptions],
    ) -> list[Instances]:
        """Post-process some images of the slot's batch again, without bounds, because they exceed those of FixedPostProcessor."""
        logger.debug("%d images of %d go through the post-processing without bounds", len(places), count)
        with self._computing:
            raw = self._graphs.run(slot, count)
            with self._graphs.stream(), torch.inference_mode():
                own = RawOutputs(*(part[list(places)] for part in raw))
                return self._exact_postprocess(own, [letterboxes[n] for n in places], [options[n] for n in places])

    def warm_up(self) -> None:
        """Record the graphs of all batch sizes, then run grey images, alone and as a full batch, with both kinds of post-processing.

        Raises:
            EngineOutOfMemory: a full batch does not fit on the GPU.
        """
        max_batch = self._info.max_batch
        with torch.cuda.device(self._device), self._starting():
            with self._computing:
                graphs = ("cuda_graphs",) if self._graphs.record_all() else ()
            self._info = replace(self._info, optimizations=(*self._optimizations, *graphs))
            self._slots.fill()
            super().warm_up()
            beyond = DetectOptions(0.0, MAX_INSTANCES + 1, frozenset({0}))
            self.detect([grey_image(self._info.input_size)] * max_batch, [beyond] * max_batch)

    def close(self) -> None:
        """Free the GPU memory of this engine."""
        self._slots.clear()
        with self._computing:
            self._graphs.clear()


def refuse_unusable(device: torch.device) -> None:
    """Compute something on the GPU.

    Raises:
        EngineUnavailable: it fails: this PyTorch has no code for the GPU, or another process has the GPU to itself or fills its memory.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(device)
        reason = str(error).partition("\n")[0]
        raise EngineUnavailable(
            f"detector.device: {torch.cuda.get_device_name(device)} (sm_{major}{minor}) is not usable: {reason}. "
            f"This PyTorch has code for {', '.join(torch.cuda.get_arch_list())}; newer and older GPUs need another build."
        ) from error
