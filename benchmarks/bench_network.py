"""How much of the matrix peak the network reaches, where the rest goes, and images/s by batch size. CPU, without decoding.

Operations are counted by `benchmarks.bench_flops`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import openvino as ov

from benchmarks.bench_ceiling import Ceiling
from benchmarks.bench_compare import Spread, load_model, spread
from benchmarks.bench_flops import count_flops
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.engine import EngineOptions, create_engine
from pipeline.inference.openvino.convert import CORE, convert
from pipeline.inference.openvino.engine import OpenVinoEngine
from pipeline.types import DetectOptions


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Network and post-processing of one model beside the matrix peak.

    Args:
        model, precision, batch: what ran.
        gflop: operations of one image here, 1e9; mmdet_gflop: of mmdet's own network.
        instances: kept, an image.
        ms: milliseconds a batch, network and post-processing; (median, lowest, highest) of the rounds.
        network_ms: of it the network alone, median.
        of_peak: share of the peak reached by network and post-processing, of the rounds.
        network_of_peak: the network alone, median.
        time_by_kind: share of the network's time by kind of layer, the largest first.
    """

    model: str
    precision: str
    batch: int
    gflop: float
    mmdet_gflop: float
    instances: float
    ms: Spread
    network_ms: float
    of_peak: Spread
    network_of_peak: float
    time_by_kind: dict[str, float]


def measure_utilisation(model: str, photo: bytes, ceiling: Ceiling, rounds: int, seconds: float, batch: int = 1) -> Utilisation:
    """Run one model at threshold 0.05, taking turns with the matrix products.

    Args:
        model: size with seeded weights.
        photo: encoded.
        ceiling: measured again before each round.
        rounds, seconds: how often, and how long each.
        batch: images a pass. Batches of several have two callers, as the Detector has two batches in flight.
    """
    checkpoint = load_model(model)
    converted = convert(checkpoint, "auto")
    engine = OpenVinoEngine(
        converted, EngineOptions(device="cpu", max_batch=batch, fitted=False)
    )  # as the operations are counted
    images = [load_image(photo, DecodeLimits(), engine.info.input_size)] * batch
    options = [DetectOptions(0.05)] * batch
    found = engine.detect(images, options)
    clock = _seconds_a_pass if batch == 1 else _seconds_a_pass_of_two
    whole, alone = [], []
    for _ in range(rounds):
        ceiling.measure()
        whole.append(clock(lambda: engine.detect(images, options), seconds))
        alone.append(clock(lambda: engine.run_network(batch), seconds))
    here, mmdet = count_flops(checkpoint.spec)
    peak = ceiling.peak(engine.info.precision)
    return Utilisation(
        model,
        engine.info.precision,
        batch,
        here / 1e9,
        mmdet / 1e9,
        sum(map(len, found)) / batch,
        spread([s * 1e3 for s in whole]),
        statistics.median(alone) * 1e3,
        spread([here * batch / s / peak for s in whole]),
        here * batch / statistics.median(alone) / peak,
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
        image = load_image(photo, DecodeLimits(), engine.info.input_size)
        measured: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(rounds):
            for batch, list_ in measured.items():
                list_.append(batch / _seconds_a_pass(_detect_batch(engine.detect, image, batch), seconds))
        rates[model] = {str(batch): spread(list_) for batch, list_ in measured.items()}
        engine.close()
        print(f"throughput of {model} done", file=sys.stderr)
    return rates


def _detect_batch(detect: Callable, image: object, batch: int) -> Callable[[], object]:
    images, options = [image] * batch, [DetectOptions()] * batch
    return lambda: detect(images, options)


def _seconds_a_pass_of_two(run: Callable[[], object], seconds: float) -> float:
    """Mean time from the end of one pass to the end of the next, with two callers at a time; the first passes do not count."""
    run()
    ends: list[float] = []
    began = time.perf_counter()

    def call() -> None:
        while len(ends) < 6 or time.perf_counter() - began < seconds:
            run()
            ends.append(time.perf_counter())

    with ThreadPoolExecutor(2) as callers:
        for caller in [callers.submit(call) for _ in range(2)]:
            caller.result()
    return (ends[-2] - ends[0]) / (len(ends) - 2)  # the last pass had the engine to itself


def _seconds_a_pass(run: Callable[[], object], seconds: float) -> float:
    """Median time of a pass, of at least 3, after one that does not count."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
