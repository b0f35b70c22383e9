"""The Engine interface and its options. Imports neither torch nor OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.errors import ConfigurationError
from pipeline.types import DetectOptions, Instances, LoadedImage

Kind = Literal["auto", "openvino", "torch", "simulated"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """Speed and results of the simulated engine: a pass over B images takes base_ms + per_image_ms * B.

    Args:
        base_ms, per_image_ms: milliseconds.
        instances: number of instances returned for every image.
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
        kind: `auto` is torch with CUDA, OpenVINO without; never `simulated`.
        precision: `auto` is the fastest that keeps accuracy on the device: bf16 or fp32 on a CPU, fp16 on CUDA.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; None takes all cores that this process may use.
        max_batch: most images in one pass of the network.
        batch_buckets: batch sizes for which CUDA graphs are recorded; None is 1, 2, 4 ... max_batch. Smaller batches are padded to the next
            size. CPU engines take any size.
        fitted: OpenVINO: pad images to the smallest of five input shapes that holds them, instead of a square.
        cuda_kernels: CUDA: use this project's kernels if they pass their self-test (`pipeline.inference.cuda.network.with_kernels`).
        cache_dir: folder for converted networks, which makes the next start faster; None disables it.
        simulated: speed and results of the simulated engine.
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
class EngineInfo:
    """Description of an engine and its model.

    Args:
        model: name of the model.
        classes: label names, in the order of `Instances.labels`.
        input_size: side of the square network input, pixels.
        engine: `openvino`, `torch` or `simulated`.
        precision: `fp32`, `bf16` or `fp16`; `none` of the simulated engine.
        device: the device's name.
        threads: CPU threads of the engine.
        max_batch: most images in one pass.
        optimizations: what is in use of `fitted_input`, `cuda_kernels` and `cuda_graphs`; the last is complete after `warm_up`.
        weights: in a service, the first 8 hex digits of the SHA-256 of the model's file: two trainings may have one name.
    """

    model: str
    classes: tuple[str, ...]
    input_size: int
    engine: str
    precision: str
    device: str
    threads: int
    max_batch: int
    optimizations: tuple[str, ...] = ()
    weights: str = ""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return asdict(self)


CapacityListener = Callable[[int], object]
"""Called by an engine, from any thread, when a second call of `detect` can make progress beside the running one: a part of the device is
free, or its memory can be filled meanwhile. The argument is the number of images that make a second call worthwhile."""


def ignore_capacity(_images: int) -> None:
    """A CapacityListener that does nothing, for callers that call `detect` from one thread."""


class Engine(Protocol):
    """Runs the network and its post-processing. `detect` may be called from several threads."""

    @property
    def info(self) -> EngineInfo:
        """Model, engine, precision and device."""
        ...

    def detect(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """Find the instances in each image; more than `max_batch` images are run in several passes.

        Args:
            images: scaled for this model's input size.
            options: one for each image.
        Returns:
            The Instances of each image, in order.
        Raises:
            EngineOutOfMemory: the batch does not fit into the device's memory; a smaller one may.
            EngineLost: the device failed.
            ShapeError: an image was scaled for another input size.
        """
        ...

    def detect_leaving_room(self, images: Sequence[LoadedImage], options: Sequence[DetectOptions]) -> list[Instances]:
        """As `detect` with at most `max_batch` images, but threads that these images do not need stay free for other calls."""
        ...

    def warm_up(self) -> None:
        """Run every batch size that is compiled in advance once. Fitted inputs are not: they are compiled when first needed."""
        ...

    def close(self) -> None:
        """Free the device. The engine cannot be used afterwards. May be called twice."""
        ...
