"""The engine of a CUDA card: everything from bytes to kept instances is one CUDA graph a batch size.

images ─▶ pinned memory ─▶ card: normalise ─▶ network ─▶ FixedPostProcessor ─▶ pinned memory ─▶ Instances
          ╰ the next batch's copies overlap this one's computing, when two threads call `detect` ╯
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.checkpoints import Checkpoint
from pipeline.engines import EngineOptions, ModelInfo
from pipeline.engines.base import BatchEngine, naming_failures
from pipeline.engines.cuda_graphs import BatchGraphs, Slot, Slots, default_buckets
from pipeline.engines.cuda_kernels import compile_kernels
from pipeline.engines.cuda_network import use_kernels
from pipeline.engines.devices import owned_cores
from pipeline.fixed_postprocess import LIMITS, MOST_INSTANCES, FixedPostProcessor, FixedResults, to_instances, wishes_of
from pipeline.head_outputs import RawOutputs
from pipeline.letterbox import pad_batch
from pipeline.mask_head import packed_mask_logits
from pipeline.network import RawNetwork
from pipeline.postprocess import PostProcessor
from pipeline.types import DetectOptions, Instances, LoadedImage

log = logging.getLogger(__name__)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CudaEngine(BatchEngine):
    """Runs on one CUDA card; see `EngineOptions` for what can be chosen.

    Args:
        checkpoint: model and weights.
        options: precision `auto` is fp16.
        device: the card.
    """

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions, device: torch.device) -> None:
        precision = "fp16" if options.precision == "auto" else options.precision
        spec, dtype = checkpoint.spec, _DTYPES[precision]
        super().__init__(
            ModelInfo(
                model=spec.name,
                classes=spec.classes,
                input_size=spec.input_size,
                engine="torch",
                precision=precision,
                device=torch.cuda.get_device_name(device),
                threads=options.threads or owned_cores(),
                max_batch=options.max_batch,
            )
        )
        # Of the whole process. The shapes are fixed and recorded, so cuDNN's search for the fastest algorithm is paid once;
        # with TF32, cuDNN's default, fp32 would have the 10 bits of mantissa of fp16.
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        self._device = device
        network = RawNetwork(checkpoint.network(), spec.input_size).convert(dtype).to(device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out of its types
        buckets = options.batch_buckets or default_buckets(options.max_batch)
        with torch.cuda.device(device):
            kernels = compile_kernels(dtype, device)
            if kernels is not None:
                use_kernels(self._network, kernels)
            input_hw, branch = (spec.input_size, spec.input_size), network.kernel_branch
            mask_head = packed_mask_logits if kernels is None else kernels.packed_mask_logits
            self._postprocess = FixedPostProcessor(input_hw, branch, device, mask_head)
            self._exact_postprocess = PostProcessor(input_hw, branch, device)
            self._graphs = BatchGraphs(self._compute, device, buckets, spec.input_size, len(spec.classes) + LIMITS)
        self._slots = Slots(self._graphs.slot)
        self._computing = threading.Lock()

    def _compute(self, pixels: Tensor, wishes: Tensor) -> tuple[RawOutputs, FixedResults]:
        raw = self._network(pixels)
        return raw, self._postprocess(raw, wishes)

    def _run(
        self, images: Sequence[LoadedImage], options: Sequence[DetectOptions], has_room: Callable[[int], object]
    ) -> list[Instances]:
        count, letterboxes = len(images), [image.letterbox for image in images]
        with torch.cuda.device(self._device), self._slots.borrow() as slot:
            pad_batch(images, self._info.input_size, out=slot.host_pixels)
            wishes_of(letterboxes, options, len(self._info.classes), out=slot.host_wishes)
            slot.upload(count)
            with self._computing:
                self._graphs.run(slot, count)
            has_room(self._info.max_batch)  # it computes now, and the host can fill the other slot
            summary, masks = slot.download(count)
            found = to_instances(summary, masks, letterboxes)
            beyond = [n for n in range(count) if not summary[n, 1] or options[n].max_detections > MOST_INSTANCES]
            if beyond:
                exactly = self._run_exactly(slot, images, options)
                for place in beyond:
                    found[place] = exactly[place]
            return found

    def _run_exactly(self, slot: Slot, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """The slot's batch once more, by the post-processing without bounds: some images have too many candidates for the other."""
        log.debug("a batch of %d goes through the post-processing without bounds", len(images))
        with self._computing:
            raw = self._graphs.run(slot, len(images))
            with self._graphs.stream():
                return self._exact_postprocess(raw, [image.letterbox for image in images], options)

    def warm_up(self) -> None:
        """Record the graphs of all batch sizes, then run a grey image alone and as a full batch.

        Raises:
            EngineOutOfMemory: a full batch does not fit on the card.
        """
        with torch.cuda.device(self._device), naming_failures(self._info.max_batch):
            self._graphs.record_all()
        super().warm_up()

    def close(self) -> None:
        """Free the card's memory, as far as this engine holds it."""
        self._slots.clear()
        self._graphs.clear()
