"""What runs the network. Importing this package is cheap: torch and OpenVINO load when an engine is made.

load_engine(name, options) ─▶ Checkpoint ─▶ create_engine ─▶ OpenVinoEngine | TorchEngine | CudaEngine
                                                             .detect(images, options) ─▶ Instances
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.errors import ConfigurationError
from pipeline.types import DetectOptions, Instances, LoadedImage

if TYPE_CHECKING:
    from pipeline.model.checkpoints import Checkpoint

# OpenVINO reports its use over the network, in processes that it forks, unless this package of its is out of reach.
# A server calls nobody. (None is the import system's way to say "not there".)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Kind = Literal["auto", "openvino", "torch", "simulated"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """What the simulated engine pretends: a pass of B images takes base_ms + per_image_ms * B.

    Args:
        base_ms, per_image_ms: milliseconds.
        instances: found in every image.
    """

    base_ms: float = 5.0
    per_image_ms: float = 2.0
    instances: int = 5

    def step_s(self, batch: int) -> float:
        """Time of a pass of `batch` images, seconds."""
        return (self.base_ms + self.per_image_ms * batch) / 1e3


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which engine, and how it runs.

    Args:
        kind: `auto` is torch where CUDA is, else OpenVINO; never `simulated`.
        precision: `auto` is the fastest that keeps accuracy on the device: bf16 or fp32 on a CPU, fp16 on CUDA.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; None takes the cores this process may use.
        max_batch: most images in one pass of the network.
        batch_buckets: batch sizes that CUDA graphs are recorded for; None is 1, 2, 4 ... max_batch. Smaller batches are
            padded up to the next one. Engines on a CPU take any size as it is.
        fitted: pad images to the smallest of five inputs that holds them instead of the square, where the engine takes them one by
            one (OpenVINO).
        cuda_kernels: on a CUDA card, this project's own kernels where they prove right (`cuda_network.with_kernels`).
        cache_dir: folder for compiled models, so that the next start is quick; None keeps none.
        simulated: speed and answers of the simulated engine; the others do not look at it.
    """

    kind: Kind = "auto"
    precision: Precision = "auto"
    device: str = "auto"
    threads: int | None = None
    max_batch: int = 8
    batch_buckets: tuple[int, ...] | None = None
    fitted: bool = True
    cuda_kernels: bool = True
    cache_dir: Path | None = None
    simulated: SimulatedStep = SimulatedStep()

    def __post_init__(self) -> None:
        if self.max_batch < 1 or (self.threads is not None and self.threads < 1):
            raise ConfigurationError(f"engine: max_batch ({self.max_batch}) and threads ({self.threads}) must be at least 1")
        if self.batch_buckets is not None and max(self.batch_buckets, default=0) < self.max_batch:
            raise ConfigurationError(
                f"engine: the largest of batch_buckets {self.batch_buckets} is below max_batch {self.max_batch}"
            )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What runs here, as decided when the engine was made.

    Args:
        model: name of the model.
        classes: label names, in the order of `Instances.labels`.
        input_size: side of the square network input, pixels.
        engine: `openvino`, `torch` or `simulated`.
        precision: `fp32`, `bf16` or `fp16`; `none` of the simulated engine.
        device: the device's name.
        threads: CPU threads of the engine.
        max_batch: most images in one pass.
    """

    model: str
    classes: tuple[str, ...]
    input_size: int
    engine: str
    precision: str
    device: str
    threads: int
    max_batch: int

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return asdict(self)


CapacityListener = Callable[[int], object]
"""Told by an engine, from any thread, that a second call of `detect` would not just wait for the one that runs: part of the device is
free, or its memory can be filled meanwhile. The argument is how many images make a second call worthwhile."""


def ignore_capacity(_images: int) -> None:
    """The listener of an engine whose calls come one at a time."""


class Engine(Protocol):
    """A uint8 batch in, instances out. `detect` may be called from several threads."""

    @property
    def info(self) -> ModelInfo:
        """What runs here."""
        ...

    def detect(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """Find the instances of each image; more than `max_batch` images go in several passes.

        Args:
            images: made for this model's input size.
            options: what to keep, one for each image.
        Raises:
            EngineOutOfMemory: the batch was too large for the device's memory; a smaller one may fit.
            ShapeError: an image was made for another input size.
        """
        ...

    def warm_up(self) -> None:
        """Run every batch size that is prepared in advance once; what is prepared when it first comes (fitted inputs) is not."""
        ...

    def close(self) -> None:
        """Free the device. The engine cannot be used afterwards; closing twice is allowed."""
        ...


def create_engine(checkpoint: Checkpoint, options: EngineOptions, on_capacity: CapacityListener = ignore_capacity) -> Engine:
    """Make the engine that `options` ask for.

    Args:
        on_capacity: used by the engines that can take a second batch beside the first (OpenVINO, CUDA).
    Raises:
        EngineUnavailable: the machine lacks what the engine needs; the message names it.
        CheckpointError: the weights do not fit an RTMDet-Ins network.
    """
    from pipeline.inference.devices import choose_kind, choose_torch_device

    if options.kind == "simulated":
        raise ConfigurationError("engine: the simulated engine takes no checkpoint; make it with load_engine")
    if choose_kind(options) == "torch":
        device = choose_torch_device(options.device)
        if device.type == "cuda":
            from pipeline.inference.cuda.engine import CudaEngine

            return CudaEngine(checkpoint, options, device, on_capacity)
        from pipeline.inference.torch_engine import TorchEngine

        return TorchEngine(checkpoint, options)
    from pipeline.inference.openvino.convert import convert
    from pipeline.inference.openvino.engine import OpenVinoEngine

    return OpenVinoEngine(convert(checkpoint, options.precision), options, on_capacity)


def load_engine(model: str | Path, options: EngineOptions, on_capacity: CapacityListener = ignore_capacity) -> Engine:
    """Make an engine for a model by its name (embedded or official, downloaded on first use) or by its path.

    With a `cache_dir`, OpenVINO's converted network is kept there: the next start needs neither mmdet nor the conversion,
    so a lost replica is replaced in a fraction of a second instead of several seconds.
    """
    from pipeline.inference.devices import choose_kind
    from pipeline.model.zoo import DEFAULT_CACHE, locate, read_header

    if options.kind == "simulated":
        from pipeline.inference.simulated import SimulatedEngine

        return SimulatedEngine(str(model), read_header(str(model), options.cache_dir or DEFAULT_CACHE), options)

    path = locate(str(model), options.cache_dir or DEFAULT_CACHE)
    if choose_kind(options) == "openvino" and options.cache_dir is not None:
        from pipeline.inference.openvino.convert import convert_cached
        from pipeline.inference.openvino.engine import OpenVinoEngine

        return OpenVinoEngine(convert_cached(path, options.precision, options.cache_dir), options, on_capacity)
    from pipeline.model.checkpoints import load_checkpoint

    return create_engine(load_checkpoint(path), options, on_capacity)
