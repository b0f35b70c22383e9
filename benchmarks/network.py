"""Measures which share of the matrix peak the network reaches, its time by layer, and images/s by batch size. On the CPU, without
decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import openvino as ov

from benchmarks.ceiling import Ceiling, count_flops
from benchmarks.compare import load_model
from benchmarks.detection import detection
from benchmarks.measure import Spread, as_number, as_range, passes_per_s, spread, table, turns
from pipeline.inference.create import create_engine
from pipeline.inference.engine import EngineOptions
from pipeline.inference.openvino.convert import CORE, convert
from pipeline.inference.openvino.engine import OpenVinoEngine

BATCHES = ("1", "8")


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Network and post-processing of one model beside the matrix peak.

    Args:
        model, precision, batch: what ran.
        gflop: operations of one image here, 1e9; mmdet_gflop: of mmdet's own network.
        instances: kept, an image.
        ms, network_ms: milliseconds a batch with post-processing, and of the network alone.
        of_peak, network_of_peak: share of the peak that each reached.
        time_by_kind: share of the network's time by kind of layer, the largest first.
    """

    model: str
    precision: str
    batch: int
    gflop: float
    mmdet_gflop: float
    instances: float
    ms: Spread
    network_ms: Spread
    of_peak: Spread
    network_of_peak: Spread
    time_by_kind: dict[str, float]


def measure_utilisation(model: str, photo: bytes, ceiling: Ceiling, rounds: int, seconds: float, batch: int = 1) -> Utilisation:
    """Run one model at threshold 0.05, taking turns with the matrix products.

    Args:
        model: size with seeded weights.
        photo: encoded.
        ceiling: measured again before each turn.
        rounds, seconds: how often, and how long each.
        batch: images per pass. Batches of several have two callers, as the Detector has two batches in flight.
    """
    checkpoint = load_model(model)
    converted = convert(checkpoint, "auto")
    options = EngineOptions(device="cpu", max_batch=batch, fitted=False)  # on the square, as the operations are counted
    engine = OpenVinoEngine(converted, options)
    detect = detection(engine, photo, batch, threshold=0.05)
    runs: dict[str, Callable[[], object]] = {"whole": detect, "network": partial(engine.run_network, batch)}
    seconds_per_pass: dict[str, list[float]] = {name: [] for name in runs}
    for _, name in turns(list(runs), rounds):
        ceiling.measure()
        seconds_per_pass[name].append(1 / passes_per_s(runs[name], seconds, callers=1 if batch == 1 else 2))
    here, mmdet = count_flops(checkpoint.spec)
    peak = ceiling.peak(engine.info.precision)
    times = {name: spread([s * 1e3 for s in passes]) for name, passes in seconds_per_pass.items()}
    shares = {name: spread([here * batch / s / peak for s in passes]) for name, passes in seconds_per_pass.items()}
    return Utilisation(
        model,
        engine.info.precision,
        batch,
        here / 1e9,
        mmdet / 1e9,
        sum(map(len, detect())) / batch,
        times["whole"],
        times["network"],
        shares["whole"],
        shares["network"],
        time_by_kind(converted.for_one_image((converted.input_size,) * 2), engine.info.precision, engine.info.threads),
    )


def time_by_kind(model: ov.Model, precision: str, threads: int) -> dict[str, float]:
    """Share of OpenVINO's time by kind of layer, 1 % and more, the largest first; measured by its own counters."""
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        "PERF_COUNT": True,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    request = CORE.compile_model(model, "CPU", properties).create_infer_request()
    pixels = np.full(model.input(0).shape, 114, np.uint8)
    for _ in range(3):
        request.infer([pixels])
    spent: dict[str, float] = {}
    for layer in request.get_profiling_info():
        kind = f"{layer.node_type} {layer.exec_type}"
        spent[kind] = spent.get(kind, 0.0) + layer.real_time.total_seconds()
    total = sum(spent.values()) or 1.0
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return {kind: round(seconds / total, 3) for kind, seconds in ordered if seconds >= 0.01 * total}


def measure_throughput(models: Sequence[str], photo: bytes, rounds: int, seconds: float) -> dict[str, dict[str, Spread]]:
    """Images/s of the engine (network and post-processing, threshold 0.3) by model and batch size."""
    rates: dict[str, dict[str, Spread]] = {}
    for model in models:
        engine = create_engine(load_model(model), EngineOptions(device="cpu", max_batch=8))
        measured: dict[str, list[float]] = {batch: [] for batch in BATCHES}
        for _, batch in turns(BATCHES, rounds):
            measured[batch].append(int(batch) * passes_per_s(detection(engine, photo, int(batch)), seconds))
        rates[model] = {batch: spread(values) for batch, values in measured.items()}
        engine.close()
    return rates


def utilisation_lines(result: Utilisation) -> str:
    """For people."""
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in list(result.time_by_kind.items())[:8])
    return (
        f"RTMDet-Ins-{result.model}, {result.precision}, batch {result.batch}, {result.instances:.0f} instances: "
        f"{as_range(result.ms)} ms with post-processing, {as_number(result.network_ms.median)} ms without; "
        f"{result.gflop:.1f} G operations (mmdet's network: {result.mmdet_gflop:.1f})\n"
        f"share of the {result.precision} matrix peak: {' '.join(f'{share:.0%}' for share in result.of_peak)} "
        f"(median, lowest, highest) with post-processing, {result.network_of_peak.median:.0%} without\n"
        f"the network's time by layer: {kinds}"
    )


def throughput_table(rates: dict[str, dict[str, Spread]]) -> str:
    """For people."""
    head = ["engine alone, images/s", *(f"batch {batch}" for batch in BATCHES)]
    return table(head, [[model, *map(as_range, by_batch.values())] for model, by_batch in rates.items()])
