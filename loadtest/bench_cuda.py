"""The same on a CUDA card: images/s of our engine and of mmdet eager, and the share of the card's bf16 matrix peak.

Both take decoded, scaled images and give boxes, scores and masks. mmdet's masks are made at network size here (rescale off):
at original size they would be most of its time. mmdet gets whole batches, which `inference_detector` would not give it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loadtest.bench_ceiling import Ceiling
from loadtest.bench_compare import Spread, load_model, spread
from loadtest.bench_network import count_flops
from loadtest.peers.mmdet_reference import MmdetReference
from pipeline.checkpoints import Checkpoint
from pipeline.decode import DecodeLimits, decode_image
from pipeline.engines import Engine, EngineOptions, create_engine
from pipeline.engines.devices import choose_torch_device
from pipeline.errors import EngineUnavailable
from pipeline.load import load_image
from pipeline.types import DetectOptions

MODELS, BATCHES = ("tiny", "x"), (1, 8, 32)
SIDES = (4096, 8192, 16384)
"""A card needs larger matrices than two cores to show its peak."""
OURS, MMDET = "ours", "mmdet eager fp32"


@dataclass(frozen=True, slots=True)
class CudaRow:
    """One model at one batch size.

    Args:
        model, batch, precision: what ran; precision is ours, mmdet computes in float32 (its convolutions in TF32).
        instances: kept, an image.
        images_per_s: by contestant, (median, lowest, highest) over the rounds.
        times_faster: ours over mmdet's, within a round.
        of_peak: share of the card's bf16 matrix peak that ours reaches, post-processing and copies within the time.
        memory_mb: highest memory on the card that PyTorch took for both, MB.
    """

    model: str
    batch: int
    precision: str
    instances: float
    images_per_s: dict[str, Spread]
    times_faster: Spread
    of_peak: float
    memory_mb: float


def why_no_cuda() -> str | None:
    """The reason that there is no card to measure, or None."""
    if torch.cuda.is_available():
        return None
    try:
        choose_torch_device("cuda")
    except EngineUnavailable as error:
        return f"no GPU here: {error.message}"
    return "no GPU here"


def measure_cuda(photo: bytes, ceiling: Ceiling, rounds: int, seconds: float) -> list[CudaRow]:
    """All models and batch sizes on the first card.

    Args:
        photo: encoded.
        ceiling: of the card; measured before each model.
        rounds, seconds: how often, and how long each.
    """
    rows = []
    for model in MODELS:
        ceiling.measure()
        checkpoint = load_model(model)
        engine = create_engine(checkpoint, EngineOptions("torch", "bf16", "cuda", max_batch=max(BATCHES), batch_buckets=BATCHES))
        engine.warm_up()
        reference = MmdetReference(checkpoint, 0.05, device="cuda")
        rows += [_measure_row(checkpoint, engine, reference, photo, batch, ceiling, rounds, seconds) for batch in BATCHES]
        engine.close()
        print(f"{model} on {torch.cuda.get_device_name()} done", file=sys.stderr)
    return rows


def _measure_row(
    checkpoint: Checkpoint,
    engine: Engine,
    reference: MmdetReference,
    photo: bytes,
    batch: int,
    ceiling: Ceiling,
    rounds: int,
    seconds: float,
) -> CudaRow:
    image = load_image(photo, DecodeLimits(), engine.info.input_size)
    images, options = [image] * batch, [DetectOptions(0.05)] * batch
    runs: dict[str, Callable[[], Sequence[Any]]] = {
        OURS: lambda: engine.detect(images, options),
        MMDET: mmdet_batch(reference, decode_image(photo, DecodeLimits())[0], batch),
    }
    torch.cuda.reset_peak_memory_stats()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(batch * passes_per_s(run, seconds))
    flop, _ = count_flops(checkpoint.spec)
    return CudaRow(
        checkpoint.spec.name,
        batch,
        engine.info.precision,
        sum(map(len, runs[OURS]())) / batch,
        {name: spread(list_) for name, list_ in rates.items()},
        spread([ours / theirs for ours, theirs in zip(rates[OURS], rates[MMDET], strict=True)]),
        spread(rates[OURS])[0] * flop / ceiling.peak("bf16"),
        torch.cuda.max_memory_allocated() / 1e6,
    )


def mmdet_batch(reference: Any, bgr: np.ndarray, batch: int) -> Callable[[], Sequence[Any]]:
    """A function that gives one batch of the same photo to mmdet and waits for its results on the host."""
    sample = reference._pipeline({"img": bgr, "img_id": 0})

    def run() -> Sequence[Any]:
        inputs = {"inputs": [sample["inputs"]] * batch, "data_samples": [sample["data_samples"].clone() for _ in range(batch)]}
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmdet's, about autocast
            data = reference._detector.data_preprocessor(inputs, False)
            found = reference._detector.predict(data["inputs"], data["data_samples"], rescale=False)
            return [one.pred_instances.cpu() for one in found]

    return run


def passes_per_s(run: Callable[[], object], seconds: float) -> float:
    """Passes a second, warm. Both contestants end with results on the host, so the clock needs no synchronising."""
    for _ in range(2):
        run()
    count, began = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - began < seconds:
        run()
        count += 1
    return count / (time.perf_counter() - began)
