"""The largest batch that fits, with memory that is made up, and once with real steps."""

import pytest
import torch

from jobs import finetune  # isort: skip  (before mmdet)

from jobs.training import run
from jobs.training.loop import batch_size
from jobs.training.loop.batch_size import available_bytes, largest_batch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid")


class Memory:
    """Steps that take `fixed + photos * each` bytes of a memory of `size`."""

    def __init__(self, size, fixed, each):
        self.size, self.fixed, self.each, self.tried = size, fixed, each, []

    def step(self, photos):
        self.tried.append(photos)
        if (peak := self.fixed + photos * self.each) > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return peak


@pytest.mark.parametrize(("each", "chosen"), [(10, 64), (20, 32), (11, 64), (900 // 16, 8), (100, 8), (800, 1)])
def test_a_card_tries_until_it_is_full(each, chosen):
    """0.85 of 1,000 bytes less 10 hold so many photos, in powers of two."""
    memory = Memory(1000, 10, each)
    assert largest_batch(memory.step, 1000, limit=64, tried=64) == chosen
    assert memory.tried == sorted(set(memory.tried))


def test_what_does_not_fit_is_no_end():
    """Memory that breaks apart does not grow in proportion: the step itself says that it does not fit."""
    assert largest_batch(lambda photos: Memory(1000, 10, 20 if photos < 16 else 90).step(photos), 1000, limit=64, tried=64) == 8


def test_a_cpu_tries_small_batches_only():
    """Four photos at most; larger ones by what each took."""
    memory = Memory(10**9, 100, 50)
    assert largest_batch(memory.step, 1060, limit=16, tried=4) == 16
    assert largest_batch(memory.step, 1058, limit=16, tried=4) == 8
    assert set(memory.tried) == {1, 2, 4}


def test_not_even_one_photo():
    with pytest.raises(ValueError, match=r"a single photo does not fit into memory\. Give a smaller --image-size"):
        largest_batch(Memory(1000, 10, 2000).step, 1000, limit=64, tried=64)


@pytest.mark.parametrize(("limit", "free"), [("max", 2048 * 1024), ("1000000", 600000), ("300000", 0)])
def test_a_container_has_less(tmp_path, limit, free):
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2048 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert available_bytes(tmp_path, tmp_path) == free


def test_another_system_is_reported(tmp_path):
    with pytest.raises(ValueError, match="needs Linux or a GPU"):
        available_bytes(tmp_path, tmp_path)


def test_a_run_with_the_batch_that_fits(tiny_coco, tmp_path, monkeypatch, capsys):
    """Reported in the first lines; --resume keeps it, though there is more memory then."""
    tried = []

    def peak(_step, photos):
        tried.append(photos)
        return 100 * photos

    monkeypatch.setattr(batch_size, "available_bytes", lambda: 300)
    monkeypatch.setattr(batch_size._Step, "peak_on_cpu", peak)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos")]
    small = ["--image-size", "64", "--workers", "0", "--warmup", "0", "--log-every", "1", "--batch-size", "auto"]
    command = [*data, *small, "--work-dir", str(tmp_path), "--steps", "2", "--save-every", "1"]
    assert finetune.main(command) == 0
    said = capsys.readouterr().out
    assert "Batch size: 2 (the largest power of two" in said
    assert "--lr stays as it is: 0.002." in said
    assert len(said.splitlines()) < 20
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 10**9)
    (tmp_path / "final.safetensors").unlink()
    assert finetune.main([*command, "--resume"]) == 0
    assert "Batch size: 2 (as the run began)" in capsys.readouterr().out
    assert tried == [1, 2]


def test_real_steps(tiny_coco, tmp_path, monkeypatch):
    """Forward, backward and the optimizer's step, with the samples of the run."""
    steps = []
    make = batch_size._Step._make
    monkeypatch.setattr(batch_size._Step, "_make", lambda step, photos: steps.append(photos) or make(step, photos))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--work-dir", str(tmp_path)]
    settings = finetune.settings_from_args([*data, "--image-size", "64", "--batch-size", "auto", "--steps", "1"])
    train, *_ = run.read_sets(settings)
    settings = run.settled(settings, run.spec_for(settings, train.classes), train, None)
    assert steps == [1, 2, 4]
    assert settings.batch_size in (1, 2, 4, 8, 16)


@pytest.mark.parametrize("more", [["--batch-size", "0"], ["--batch-size", "many"], ["--batch-size", "auto", "--processes", "2"]])
def test_what_is_no_batch_size(tmp_path, more, capsys):
    with pytest.raises(SystemExit):
        finetune.settings_from_args(["--train", "x", "--train-images", "y", "--work-dir", str(tmp_path), *more])
    assert "--batch-size" in capsys.readouterr().err
