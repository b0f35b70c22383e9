"""The benchmark on a GPU: images/s of our engine and of mmdet eager, and the share of the GPU's matrix peak.

    python -m benchmarks.bench_cuda [--models tiny x] [--batches 1 8 32] [--rounds 3] [--seconds 4]

`benchmarks.bench` runs it where there is a GPU; alone it needs neither Ray nor OpenVINO. Each row is printed as soon as it is measured.

Both take decoded, scaled images and give boxes, scores and masks. mmdet's masks are made at network size here (rescale off):
at original size they would be most of its time. mmdet gets whole batches, which `inference_detector` would not give it. Our
engine runs as in the service: precision `auto`, and two threads, so that one batch is copied while the other is computed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.ceiling import Ceiling, count_flops
from benchmarks.compare import load_model
from benchmarks.detection import detection
from benchmarks.measure import Spread, add_arguments, as_range, finish, passes_per_s, ratios, spread, table
from benchmarks.mmdet_reference import MmdetReference
from benchmarks.photos import SMALL_WH, bench_photos
from pipeline.errors import EngineOutOfMemory
from pipeline.images.decode import DecodeLimits, decode_image
from pipeline.inference.create import create_engine
from pipeline.inference.cuda.graphs import cudnn_at_its_fastest
from pipeline.inference.devices import switched
from pipeline.inference.engine import EngineOptions
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.compiled_ops import ensure_mmcv_ops

MODELS, BATCHES = ("tiny", "x"), (1, 8, 32)
SIDES = (4096, 8192, 16384)
"""Sides of the matrices; a GPU needs larger ones than two cores to reach its peak."""
OURS, MMDET = "ours", "mmdet eager fp32"
CALLERS = 2
"""Threads that call our engine; the Detector keeps as many batches in flight on a GPU."""
Run = Callable[[], Sequence[Any]]
Contestant = TypeVar("Contestant", bound=Run)


@dataclass(frozen=True, slots=True)
class CudaRow:
    """One model at one batch size.

    Args:
        model, batch, precision: what ran; precision is ours, mmdet computes in float32 (its products in TF32).
        instances: kept, an image.
        images_per_s: by contestant, ours first; (median, lowest, highest) over the rounds.
        times_faster: ours over mmdet's, within a round.
        of_peak: share of the GPU's matrix peak in our precision that ours reaches, post-processing and copies within the time.
        memory_mb: most memory on the GPU that PyTorch held for each contestant, MB; 1e6 bytes.
    """

    model: str
    batch: int
    precision: str
    instances: float
    images_per_s: dict[str, Spread]
    times_faster: Spread
    of_peak: float
    memory_mb: dict[str, float]


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """A model and batch size for which the GPU has too little memory; `reason` is the library's message."""

    model: str
    batch: int
    reason: str


def why_no_cuda() -> str | None:
    """The reason that there is no GPU to measure, or None."""
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def measure_cuda(
    photo: bytes,
    ceiling: Ceiling,
    rounds: int,
    seconds: float,
    device: str,
    models: Sequence[str],
    batches: Sequence[int],
) -> Iterator[CudaRow | DoesNotFit]:
    """Models and batch sizes on the first GPU, one after the other.

    Args:
        photo: encoded.
        ceiling: of the GPU; measured before each model.
        rounds, seconds: how often, and how long each.
        device: where both contestants run.
        models: sizes with seeded weights.
        batches: images per pass.
    """
    for model in models:
        ceiling.measure()
        checkpoint = load_model(model)
        for batch in batches:
            row: CudaRow | DoesNotFit
            try:
                row = _row(checkpoint, photo, batch, ceiling, rounds, seconds, device)
            except (EngineOutOfMemory, torch.OutOfMemoryError) as error:
                row = DoesNotFit(checkpoint.spec.name, batch, str(error).partition("\n")[0])
            yield row


@contextmanager
def mmdets_best_case() -> Iterator[None]:
    """Let cuDNN time its algorithms and take the fastest, and compute float32 products in TF32.

    Not the default, but mmdet eager at its fastest. The settings are restored on exit: our engine sets its own, and the
    peak must be measured with float32 products.
    """
    with cudnn_at_its_fastest(tf32=True), switched((torch.backends.cuda.matmul, "allow_tf32", True)):
        yield


def _row(checkpoint: Checkpoint, photo: bytes, batch: int, ceiling: Ceiling, rounds: int, seconds: float, device: str) -> CudaRow:
    mmdet = mmdet_label()
    memory_mb: dict[str, float] = {}
    engine, memory_mb[OURS] = peak_mb(lambda: _OurBatch(checkpoint, photo, batch, device), CALLERS)
    with mmdets_best_case():
        reference, memory_mb[mmdet] = peak_mb(
            lambda: mmdet_batch(MmdetReference(checkpoint, 0.05, device=device), decode_image(photo, DecodeLimits())[0], batch), 1
        )
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(batch * passes_per_s(engine, seconds, CALLERS))
        with mmdets_best_case():
            theirs.append(batch * passes_per_s(reference, seconds))
    flop, _ = count_flops(checkpoint.spec)
    found = engine()
    engine.close()
    return CudaRow(
        checkpoint.spec.name,
        batch,
        engine.precision,
        sum(map(len, found)) / batch,
        {OURS: spread(ours), mmdet: spread(theirs)},
        ratios(ours, theirs),
        spread(ours).median * flop / ceiling.peak(engine.precision),
        memory_mb,
    )


def mmdet_label() -> str:
    """mmdet's name in tables; it tells when its NMS was not mmcv's compiled one but the stand-in of `pipeline.model.compiled_ops`."""
    return MMDET if ensure_mmcv_ops() else f"{MMDET}, stand-in NMS"


class _OurBatch:
    """Gives one batch of the same photo to an engine of its own."""

    def __init__(self, checkpoint: Checkpoint, photo: bytes, batch: int, device: str) -> None:
        engine = create_engine(checkpoint, EngineOptions("torch", "auto", device, max_batch=batch, batch_buckets=(batch,)))
        engine.warm_up()
        self.precision, self.close = engine.info.precision, engine.close
        self._run = detection(engine, photo, batch, threshold=0.05)

    def __call__(self) -> Sequence[Any]:
        return self._run()


def peak_mb(prepare: Callable[[], Contestant], callers: int) -> tuple[Contestant, float]:
    """Make a contestant, run it from an emptied GPU, and say how much of the GPU PyTorch held for it.

    Reserved memory, not allocated: what CUDA graphs keep for their replays counts only there. What was held before, and what
    cuDNN only tried in the first passes, is left out.

    Args:
        prepare: makes the contestant, weights and all.
        callers: threads that run it.
    Returns:
        The contestant, and MB (1e6 bytes).
    """
    _empty_card()
    before = torch.cuda.memory_reserved()
    run = prepare()
    passes_per_s(run, 0, callers)
    _empty_card()
    torch.cuda.reset_peak_memory_stats()
    passes_per_s(run, 0, callers)
    return run, (torch.cuda.max_memory_reserved() - before) / 1e6


def _empty_card() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def mmdet_batch(reference: Any, bgr: np.ndarray, batch: int) -> Run:
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


def measure_and_print(
    photo: bytes, rounds: int, seconds: float, models: Sequence[str] = MODELS, batches: Sequence[int] = BATCHES
) -> dict[str, object]:
    """Print the ceiling, then each row as it comes; returns everything as JSON-ready facts, or the reason that there is no GPU."""
    if reason := why_no_cuda():
        print(f"\n{reason}", flush=True)
        return {"skipped": reason}
    ceiling, rows = Ceiling("cuda", SIDES), list[CudaRow | DoesNotFit]()
    ceiling.measure()
    print("", *ceiling.as_lines(), "", table(table_head(mmdet_label()), []), sep="\n", flush=True)
    for row in measure_cuda(photo, ceiling, rounds, seconds, "cuda", models, batches):
        rows.append(row)
        print(f"| {' | '.join(table_row(row))} |", flush=True)
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": torch.cuda.get_device_name(), **versions, "ceiling": asdict(ceiling), "rows": [asdict(row) for row in rows]}


def table_head(mmdet: str) -> list[str]:
    """Columns, with mmdet's name."""
    return ["on the GPU", "batch", "ours images/s", f"{mmdet} images/s", "times faster", "of matrix peak", "MB: mmdet / ours"]


def table_row(row: CudaRow | DoesNotFit) -> list[str]:
    """Cells of the same table."""
    if isinstance(row, DoesNotFit):
        return [row.model, str(row.batch), f"does not fit: {row.reason}", *["-"] * 4]
    (ours, theirs), (our_mb, their_mb) = row.images_per_s.values(), row.memory_mb.values()
    name, share, mb = f"{row.model} {row.precision}", f"{row.of_peak:.1%}", f"{their_mb:,.0f} / {our_mb:,.0f}"
    return [name, str(row.batch), as_range(ours), as_range(theirs), as_range(row.times_faster), share, mb]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("nano", "tiny", "s", "m", "l", "x"), default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    add_arguments(parser)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # mmdet's, many
    (photo,) = bench_photos(args.images, 1, SMALL_WH)
    facts = measure_and_print(photo, args.rounds, args.seconds, args.models, args.batches)
    finish("bench_cuda", facts, args.output)
    return 1 if "skipped" in facts else 0


if __name__ == "__main__":
    sys.exit(main())
