"""Creates engines. Imports torch and OpenVINO only when an engine needs them.

load_engine(name, options) ─▶ Checkpoint ─▶ create_engine ─▶ OpenVinoEngine | TorchEngine | CudaEngine
                                                             .detect(images, options) ─▶ Instances
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigurationError
from pipeline.inference.engine import CapacityListener, Engine, EngineOptions, ignore_capacity

if TYPE_CHECKING:
    from pipeline.model.checkpoints import Checkpoint


def create_engine(checkpoint: Checkpoint, options: EngineOptions, on_capacity: CapacityListener = ignore_capacity) -> Engine:
    """Create an engine.

    Args:
        checkpoint: model and weights.
        options: kind of engine and its options.
        on_capacity: called by engines that can run a second batch beside the first (OpenVINO, CUDA).
    Raises:
        EngineUnavailable: the machine lacks what the engine needs; the message names it.
        CheckpointError: the weights do not fit an RTMDet-Ins network.
        ConfigurationError: the simulated engine is asked for, which takes no checkpoint.
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
    """Create an engine for a model given by name (embedded or official, downloaded on first use) or path.

    With a `cache_dir`, OpenVINO's converted network is stored there: the next start needs neither mmdet nor the conversion, and takes a
    fraction of a second instead of several seconds.
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
