"""The benchmark itself, on settings of a second: both ways give the same objects, and figures are worked out right."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from benchmarks import bench, bench_cuda, compare, memory, network
from benchmarks.bench_cuda import OURS as OURS_ON_GPU
from benchmarks.bench_cuda import CudaRow, mmdet_batch, mmdet_label, peak_mb, table_head, table_row, why_no_cuda
from benchmarks.ceiling import Ceiling
from benchmarks.compare import MMDET, OURS, OURS_FP32, Setting, instances_that_fit, summarise
from benchmarks.imports import REPOSITORY
from benchmarks.measure import passes_per_s
from benchmarks.mmdet_reference import MmdetReference
from benchmarks.photos import LARGE_WH, SMALL_WH, bench_photos
from benchmarks.timed_pipelines import STAGES, Answered
from pipeline.errors import EngineOutOfMemory
from pipeline.images.decode import DecodeLimits, decode_image
from tests.support.seeded import seeded_checkpoint


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a small seeded nano."""
    for module in (compare, bench_cuda, network):
        monkeypatch.setattr(module, "load_model", lambda _name: seeded_checkpoint("nano"))


@pytest.fixture
def ceiling() -> Ceiling:
    """Of tiny matrices."""
    return Ceiling(sides=(64, 128))


@pytest.mark.parametrize("size_wh", [SMALL_WH, (900, 600)])
def test_photos_have_the_size_that_is_asked_for(size_wh):
    """Not nearly: exactly."""
    (photo,) = bench_photos(None, 1, size_wh)
    with Image.open(io.BytesIO(photo)) as image:
        assert image.size == size_wh


def test_both_ways_answer_alike(ceiling, tmp_path):
    """The same photo through all contestants: as many objects, all stages timed, a table and a plot of it."""
    setting = Setting("tiny", 0.05, (320, 240), 1, max_detections=20)
    result = compare.compare(setting, bench_photos(None, 1, (320, 240)), 1, lambda: ceiling.measure(1))
    assert result.instances[OURS_FP32] == pytest.approx(result.instances[MMDET], abs=2)
    assert all(result.stages_ms[name][stage] > 0 for name in (OURS, MMDET) for stage in STAGES)
    assert result.ms[MMDET][0] == pytest.approx(sum(result.stages_ms[MMDET].values()), rel=0.01)
    assert result.moved[MMDET]["masks"] == result.instances[MMDET] * 320 * 240
    assert "tiny at 0.05, 320x240" in compare.as_tables([result])
    compare.plot([result], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_ratios_are_taken_within_rounds():
    """A slow round of the machine slows both: the ratio stays 4."""

    def answered(total_s: float) -> list[Answered]:
        return [Answered(b"{}", 3, dict.fromkeys(STAGES, total_s / 4), total_s, total_s, {"json": 2})]

    ours, theirs = [answered(s) for s in (1.0, 2.0, 9.0)], [answered(s) for s in (4.0, 8.0, 36.0)]
    result = summarise("x", {OURS: ours, OURS_FP32: ours, MMDET: theirs})
    assert result.times_faster[OURS] == (4.0, 4.0, 4.0)
    assert result.ms[OURS] == (2000.0, 1000.0, 9000.0)


@pytest.mark.parametrize(("gigabytes", "instances"), [(6, 40), (14, 100), (0.5, 1)], ids=["some", "all", "at least one"])
def test_instances_are_cut_to_what_mmdet_has_memory_for(gigabytes, instances):
    """124 MB a mask at 12 megapixels."""
    assert instances_that_fit(LARGE_WH, gigabytes * 1e9) == instances


def test_utilisation_counts_what_runs_here(ceiling):
    """Fewer operations than mmdet's network, shares between 0 and 1."""
    (photo,) = bench_photos(None, 1, (320, 240))
    result = network.measure_utilisation("x", photo, ceiling, 1, 0.01)
    assert 0 < result.gflop < result.mmdet_gflop
    assert sum(result.time_by_kind.values()) <= 1.01
    assert result.network_ms.median > 0
    assert "matrix peak" in network.utilisation_lines(result)


def test_throughput_of_two_batch_sizes():
    """Batches of 1 and 8."""
    (photo,) = bench_photos(None, 1, (320, 240))
    rates = network.measure_throughput(["nano"], photo, 1, 0.01)
    assert set(rates["nano"]) == {"1", "8"}
    assert "nano" in network.throughput_table(rates)


def test_mmdet_takes_whole_batches_for_the_gpu():
    """What the CUDA part times, on a CPU: a batch in, a result for each image out."""
    (photo,) = bench_photos(None, 1, (320, 240))
    run = mmdet_batch(MmdetReference(seeded_checkpoint("nano")), decode_image(photo, DecodeLimits())[0], 2)
    assert len(run()) == 2
    assert passes_per_s(run, 0.01) > 0


class FakeGpu:
    """PyTorch's memory counters; `reserved` grows by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.peak = 0
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "memory_reserved", "max_memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def synchronize(self) -> None: ...

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_reserved(self) -> int:
        return self.peak


@pytest.mark.slow
def test_the_whole_part_on_a_gpu(ceiling, monkeypatch):
    """On the CPU, with the counters of no GPU: both contestants' rows, and mmdet's column tells whose NMS it had."""
    FakeGpu(monkeypatch)
    before = torch.backends.cudnn.benchmark
    photo = bench_photos(None, 1, (320, 240))[0]
    (row,) = bench_cuda.measure_cuda(photo, ceiling, 1, 0.01, device="cpu", models=("nano",), batches=(2,))
    assert row.batch == 2
    assert set(row.images_per_s) == set(row.memory_mb) == {OURS_ON_GPU, mmdet_label()}
    assert len(table_row(row)) == len(table_head(mmdet_label()))
    assert torch.backends.cudnn.benchmark == before


def test_on_a_bare_machine_it_needs_neither_ray_nor_openvino():
    """A GPU that is lent for minutes has PyTorch and mmdet."""
    program = "import sys; sys.modules |= dict.fromkeys(('ray', 'openvino')); import benchmarks.bench_cuda"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=REPOSITORY)


def test_what_does_not_fit_on_the_gpu_is_a_row(ceiling, monkeypatch):
    """The other batch sizes are measured all the same."""

    def engine(_checkpoint: object, _photo: bytes, batch: int, _device: str) -> None:
        raise EngineOutOfMemory(f"a batch of {batch} images does not fit into memory")

    FakeGpu(monkeypatch)
    monkeypatch.setattr(bench_cuda, "_OurBatch", engine)
    rows = list(bench_cuda.measure_cuda(b"", ceiling, 1, 0.01, device="cpu", models=("nano",), batches=(1, 32)))
    assert [row.batch for row in rows] == [1, 32]
    assert len(table_row(rows[1])) == len(table_head(mmdet_label()))
    assert "a batch of 32 images does not fit" in table_row(rows[1])[2]


def test_without_a_gpu_it_says_so(capsys):
    """As text, in the JSON, and by its exit status."""
    assert bench_cuda.main(["--models", "nano", "--batches", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["skipped"] == why_no_cuda()
    assert str(why_no_cuda()) in lines
    assert "detector.device" not in str(why_no_cuda())  # a setting that was not set here


def test_memory_on_the_gpu_is_each_contestants_own(monkeypatch):
    """What was held before and what the first passes took for a while do not count; the last passes' peak does."""
    gpu = FakeGpu(monkeypatch)
    gpu.reserved, passes = 1_000_000, []

    def run() -> list[int]:
        passes.append(1)
        gpu.peak = max(gpu.peak, 90_000_000 if len(passes) < 3 else 8_000_000)
        return []

    assert peak_mb(lambda: run, callers=1) == (run, 7.0)


def test_mmdets_name_shows_which_nms_it_used(monkeypatch):
    """Nothing is added for mmcv's own NMS."""
    monkeypatch.setattr(bench_cuda, "ensure_mmcv_ops", lambda: True)
    assert mmdet_label() == bench_cuda.MMDET
    monkeypatch.setattr(bench_cuda, "ensure_mmcv_ops", lambda: False)
    assert mmdet_label().endswith("stand-in NMS")


def test_tables_of_the_gpu_and_of_memory():
    """They name what was measured."""
    speeds, held = {OURS_ON_GPU: (9, 8, 10), "mmdet": (3, 2, 4)}, {OURS_ON_GPU: 2345, "mmdet": 5432}
    row = CudaRow("tiny", 8, "fp16", 100, speeds, (3.0, 3.0, 3.0), 0.25, held)
    assert table_row(row)[-2:] == ["25.0%", "5,432 / 2,345"]
    assert "1,234" in memory.as_table([memory.Memory("mmdet", 100, 1234, 2345)])
    assert memory._status_mb("VmHWM") >= memory._status_mb("VmRSS") * 0.99 > 0


def test_the_last_line_is_json(capsys, monkeypatch):
    """The ceiling comes first, the JSON last, and what is not measured is not in it."""
    monkeypatch.setattr(bench, "Ceiling", lambda: Ceiling(sides=(64, 128)))
    assert bench.main(["--only", "throughput", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.strip() and "--memory-gb" not in line).startswith("ceiling (cpu)")
    facts = json.loads(lines[-1])
    assert "peak" not in facts
    assert facts["throughput"]["nano"]["8"][0] > 0
