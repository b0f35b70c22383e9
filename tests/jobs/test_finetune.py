"""A real training of a few steps on generated pictures."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings

import psutil
import pytest
import torch

from jobs import finetune  # isort: skip  (before mmdet)

from mmdet.datasets import CocoDataset
from mmdet.models.dense_heads import RTMDetInsHead
from mmdet.models.layers import ExpMomentumEMA
from mmengine.fileio.backends import LocalBackend
from mmengine.model import BaseModel
from mmengine.registry import PARAM_SCHEDULERS

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import Report
from jobs.third_party import known_warnings_ignored
from jobs.training import run
from jobs.training.data.photo_check import photo_files
from jobs.training.data.samples import TrainingPhotos
from jobs.training.data.seen_objects import SeenObjectsHook
from jobs.training.loop import validation
from jobs.training.network import precision
from jobs.training.network.layers import RatesByLayer, check_layers, freeze
from jobs.training.network.precision import choose_precision, optim_wrapper_type
from jobs.training.output import console
from jobs.training.output.console import ConciseRunner
from jobs.training.output.results import newest_checkpoint
from jobs.training.run import read_sets
from jobs.training.runner_config import lasting_settings, runner_config, training_steps, validation_interval
from jobs.training.settings import FinetuneSettings, default_workers, settings_from_args
from pipeline.model.checkpoints import Checkpoint, load_checkpoint, save_safetensors
from pipeline.model.spec import build_network, nano_spec
from tests.support.full_disk import files_no_larger_than

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid")


def arguments(tiny_coco, work_dir, *more):
    common = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--work-dir", str(work_dir)]
    small = ["--image-size", "64", "--batch-size", "2", "--workers", "0", "--warmup", "1", "--lr", "1e-3", "--log-every", "1"]
    return [*common, *small, *more]


def annotated(folder, photos):
    """A set without objects, of so many photos."""
    (folder / "set.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    return Annotations(folder / "set.json", folder, ("a",), photos, Report("a"))


SAME = ("--freeze", "backbone", "--val-every", "4")
"""Options of `trained`, which a resumed run must have too."""


def validated(tiny_coco):
    return ["--val", str(tiny_coco / "azureml.jsonl"), "--val-images", str(tiny_coco / "photos")]


@pytest.fixture(scope="module")
def trained(tiny_coco, tmp_path_factory):
    """Work folder of four steps with validation, bf16, averaging, mosaic and a frozen backbone."""
    work_dir = tmp_path_factory.mktemp("run")
    start = work_dir / "start.safetensors"
    torch.manual_seed(1)
    save_safetensors(Checkpoint(nano_spec(), build_network(nano_spec()).state_dict()), start)
    more = ["--steps", "4", "--save-every", "2", "--init-weights", str(start), *SAME]
    assert finetune.main(arguments(tiny_coco, work_dir, *more, *validated(tiny_coco))) == 0
    return work_dir


def test_the_result_contains_classes_size_and_configuration(trained):
    """The finished file holds classes, input size and configuration, and its network runs; mmengine's own file can be loaded, too."""
    checkpoint = load_checkpoint(trained / "final.safetensors")
    assert checkpoint.spec.classes == load_checkpoint(trained / "iter_4.pth").spec.classes == ("ball", "egg")
    assert checkpoint.spec.input_size == 64
    with torch.inference_mode():
        scores = checkpoint.network().bbox_head(checkpoint.network().extract_feat(torch.zeros(1, 3, 64, 64)))[0]
    assert scores[0].shape == (1, 2, 8, 8)


def test_frozen_layers_stay(trained):
    """The backbone is as it was, batch-norm statistics included; the mask branch is not."""
    start, end = load_checkpoint(trained / "start.safetensors"), load_checkpoint(trained / "final.safetensors")
    changed = {
        ".".join(name.split(".")[:2])
        for name, value in end.state_dict.items()
        if value.shape == start.state_dict[name].shape and not torch.equal(value, start.state_dict[name])
    }
    assert not any(name.startswith("backbone") for name in changed)
    assert "bbox_head.mask_head" in changed


@pytest.mark.parametrize("steps", [36, 120, 500, 2_000, 20_000])
def test_the_average_is_of_the_runs_end(steps, tmp_path):
    """Of any run: a fixed memory of 500 steps would save what short ones began with."""
    settings = settings_from_args(["--train", "a", "--train-images", "b", "--work-dir", str(tmp_path), "--steps", str(steps)])
    hooks = runner_config(settings, nano_spec(), annotated(tmp_path, photos=8), None, None).custom_hooks
    options = next(hook for hook in hooks if hook["type"] == "EMAHook")
    weight = torch.nn.Linear(1, 1, bias=False)
    average = ExpMomentumEMA(weight, momentum=options["momentum"], gamma=options["gamma"])
    with torch.no_grad():
        for step in range(steps):
            weight.weight.fill_(float(step >= steps // 2))
            average.update_parameters(weight)
    assert float(average.module.weight) > 0.95


def test_the_console_shows_progress_and_the_file_everything(tiny_coco, tmp_path, capsys):
    """Hundreds of lines about the machine and the parameters are only in the file."""
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 0
    shown, logged = capsys.readouterr().out, next(tmp_path.rglob("*.log")).read_text()
    assert "Iter(train) [1/1]" in shown
    assert len(shown.splitlines()) < 20
    for beginning in ("paramwise_options", "System environment", "Hooks will be executed"):
        assert beginning in logged
        assert beginning not in shown


def test_progress_and_ap_are_logged(trained):
    log = next(trained.rglob("*.log")).read_text()
    assert re.search(r"Iter\(train\) \[4/4\].*eta:.*loss_mask:", log)
    assert "mask_ap" in log


def losses(work_dir):
    """Loss by step, of all calls that trained in this folder."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


SIX_STEPS = ("--steps", "6", "--mosaic-until", "1", "--precision", "fp32", "--save-every", "3")


@pytest.fixture(scope="module")
def six_losses(tiny_coco, tmp_path_factory):
    """Of a run without a stop."""
    work_dir = tmp_path_factory.mktemp("whole")
    assert finetune.main(arguments(tiny_coco, work_dir, *SIX_STEPS)) == 0
    return losses(work_dir)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_run_has_the_losses_of_one_without_a_stop(tiny_coco, tmp_path, monkeypatch, six_losses, workers):
    """Also with other --workers; including mosaics, crops and colours."""
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, signal.SIGTERM, stop_after(3)))
        assert finetune.main(arguments(tiny_coco, tmp_path, *SIX_STEPS)) == 128 + signal.SIGTERM
    assert finetune.main(arguments(tiny_coco, tmp_path, *SIX_STEPS, "--resume", "--workers", workers)) == 0
    assert losses(tmp_path) == pytest.approx(six_losses, rel=1e-4)
    assert len(six_losses) == 6


def stop_after(steps):
    """Send the signal in this step alone."""
    calls = itertools.count(1)
    return lambda number: signal.raise_signal(number) if next(calls) == steps else None


def train_nothing(patch):
    """Steps are counted, no sample is made and no network runs."""
    patch.setattr(BaseModel, "train_step", lambda *_, **__: {"loss": torch.zeros(())})
    patch.setattr(TrainingPhotos, "__getitem__", lambda *_: {})
    patch.setattr(SeenObjectsHook, "after_train_iter", lambda *_, **__: None)


def test_resume_does_not_replay_samples(tiny_coco, tmp_path, monkeypatch):
    """A run at step 100 begins with sample 200: the first new step comes at once."""
    steps = ["--steps", "101", "--save-every", "100", "--ema", "0"]
    with monkeypatch.context() as patch:
        train_nothing(patch)
        patch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, signal.SIGTERM, stop_after(100)))
        assert finetune.main(arguments(tiny_coco, tmp_path, *steps, "--log-every", "100")) == 128 + signal.SIGTERM
    numbers = []
    make = TrainingPhotos.__getitem__
    monkeypatch.setattr(TrainingPhotos, "__getitem__", lambda self, place: numbers.append(place[1]) or make(self, place))
    assert finetune.main(arguments(tiny_coco, tmp_path, *steps, "--resume")) == 0
    assert numbers == [200, 201]


def test_accumulated_batches_are_one_step(tiny_coco, tmp_path):
    """Two batches of 2 make the step, and the schedule, of one of 4; batch norms fixed, as they see each batch alone."""
    found = []
    for name, batch, accumulate in (("one", "4", "1"), ("two", "2", "2")):
        more = ["--steps", "3", "--batch-size", batch, "--accumulate", accumulate, "--precision", "fp32", "--val-every", "2"]
        fixed = ["--fix-batch-norm", "backbone", "neck", "bbox_head", *validated(tiny_coco)]
        assert finetune.main(arguments(tiny_coco, tmp_path / name, *more, *fixed)) == 0
        rows = [json.loads(row) for row in next((tmp_path / name).rglob("scalars.json")).read_text().splitlines()]
        found.append([(row["step"], row["lr"]) for row in rows if "lr" in row])
        assert [row["step"] for row in rows if "mask_ap" in row] == [2, 3]
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("photos", "chosen", "steps", "every"),
    [(90, {}, 600, 24), (19, {}, 600, 24), (8000, {}, 20_000, 2000), (90, {"epochs": 2}, 46, 23), (90, {"steps": 7}, 7, 23)],
    ids=["few photos", "very few", "many", "epochs given", "steps given"],
)
def test_a_run_of_few_photos_is_long_enough(tmp_path, photos, chosen, steps, every):
    """Ten epochs and at least 600 steps; a validation an epoch, and at most 25."""
    settings = FinetuneSettings(train=tmp_path, train_images=tmp_path, work_dir=tmp_path, **chosen)
    train = annotated(tmp_path, photos)
    assert training_steps(settings, train) == steps
    assert validation_interval(settings, train) == every


def test_a_share_of_the_photos_is_measured_on(tiny_coco, tmp_path, capsys):
    """--val-share: no photo on both sides, a line for the measurement, a curve, and AP by label where something was found."""
    more = ["--steps", "2", "--val-share", "0.34", "--gradient-checkpointing", "--init-weights", "none"]
    assert finetune.main(arguments(tiny_coco, tmp_path, *more)) == 0
    told = capsys.readouterr().out
    assert "train.json: 4 photos" in told
    assert "val.json: 2 photos" in told
    assert "val: box 0.0 mask 0.0, mask_ap 0 so far" in told
    assert "ERROR" not in told
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_runs_of_other_seeds_are_measured_on_the_same_photos(tiny_coco, tmp_path):
    parts = []
    for seed in ("0", "7"):
        arguments_of_seed = arguments(tiny_coco, tmp_path / seed, "--val-share", "0.34", "--seed", seed)
        train, val, _ = read_sets(settings_from_args(arguments_of_seed))
        parts.append([[path.name for path in photo_files(part)] for part in (train, val)])
    assert parts[0] == parts[1]


def test_photos_in_both_sets_are_reported(tiny_coco, tmp_path, capsys):
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1", *validated(tiny_coco))) == 0
    told = capsys.readouterr().out
    assert "Warning: 6 validation photos are also training photos" in told
    assert "Note: 5 objects are few to measure on" in told


def test_a_log_backend_that_is_not_installed_is_refused(tiny_coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SystemExit):
        settings_from_args(arguments(tiny_coco, tmp_path, "--log-to", "mlflow"))
    assert "pip install mlflow" in capsys.readouterr().err


def test_white_level_reaches_training_and_measurements(tmp_path):
    """And stays as it is when a run goes on."""
    settings = FinetuneSettings(train=tmp_path, train_images=tmp_path, work_dir=tmp_path, white_level=4095, val_every=5)
    annotations = annotated(tmp_path, photos=8)
    config = runner_config(settings, nano_spec(), annotations, annotations)
    assert config.train_dataloader.dataset.transforms["load"][0]["white_level"] == 4095
    assert config.val_cfg.white_level == 4095
    assert lasting_settings(settings, nano_spec(), annotations, None)["--white-level"] == 4095


def test_logs_are_mmengines(tmp_path):
    settings = FinetuneSettings(
        train=tmp_path, train_images=tmp_path, work_dir=tmp_path / "mine", log_to=("tensorboard", "mlflow")
    )
    annotations = annotated(tmp_path, photos=8)
    backends = runner_config(settings, nano_spec(), annotations, None).visualizer.vis_backends
    assert [backend["type"] for backend in backends] == ["LocalVisBackend", "TensorboardVisBackend", "MlflowBackend"]


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "step", "constant"])
def test_schedules_end_where_they_should(tiny_coco, tmp_path, monkeypatch, scheduler):
    """All from the same peak: cosine and linear end near 2 % of it, step at a hundredth, constant stays."""
    train_nothing(monkeypatch)
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "10", "--scheduler", scheduler)) == 0
    rows = [json.loads(row) for row in next(tmp_path.rglob("scalars.json")).read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    last = {"cosine": (1e-5, 1.2e-4), "linear": (1e-5, 1.6e-4), "step": (0.9e-5, 1.1e-5), "constant": (1e-3, 1e-3)}[scheduler]
    assert last[0] <= rates[-1] * 1.0001
    assert rates[-1] <= last[1] * 1.0001


@pytest.mark.parametrize(
    ("steps", "warmup", "lower_from"), [(600, 100, (400, 533)), (600, 0, (400, 533)), (60, 1000, (40, 53)), (10, 1, (6, 8))]
)
def test_the_step_schedule_counts_from_the_first_step(tmp_path, steps, warmup, lower_from):
    """A tenth at two thirds of the run, whatever the warm-up, and again at eight ninths."""
    settings = FinetuneSettings(
        train=tmp_path, train_images=tmp_path, work_dir=tmp_path, steps=steps, warmup=warmup, scheduler="step"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule = runner_config(settings, nano_spec(), annotated(tmp_path, photos=8), None).param_scheduler
    schedulers = [PARAM_SCHEDULERS.build(one | {"optimizer": optimizer}) for one in schedule]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in schedulers:
            one.step()
    assert tuple(step for step in range(1, steps) if rates[step] < rates[step - 1] / 2) == lower_from
    assert rates[-1] == pytest.approx(settings.lr / 100)


@pytest.mark.parametrize(
    ("gpu", "instructions", "chosen"),
    [(None, True, "bf16"), (None, False, "fp32"), ((9, 0), False, "bf16"), ((7, 5), True, "fp16"), ((6, 1), True, "fp32")],
    ids=["CPU with bf16", "CPU with AVX2 alone", "H100", "T4", "P100"],
)
def test_auto_precision_is_what_the_device_computes_in(monkeypatch, gpu, instructions, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: instructions)
    assert choose_precision("auto")[0] == chosen
    assert choose_precision("fp32")[0] == "fp32"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--steps", "6"], "--steps 4 (now 6)"),
        (["--lr", "0.5"], "--lr 0.001 (now 0.5)"),
        (["--optimizer", "sgd"], "--optimizer adamw (now sgd)"),
        (["--freeze", "neck"], "--freeze ['backbone'] (now ['backbone', 'neck'])"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resume_with_other_settings_is_refused(tiny_coco, trained, capsys, more, told):
    """The checkpoint has its own: optimizer and learning rates would be lost, or the new ones ignored."""
    arguments_ = arguments(tiny_coco, trained, *SAME, *validated(tiny_coco), "--steps", "4", *more, "--resume")
    assert finetune.main(arguments_) == 2
    assert f"iter_4.pth is from a run with {told}. Use the same settings" in capsys.readouterr().err


def without_the_last(document):
    """Which has no objects."""
    document["images"].pop()


def moved(document):
    found = document["annotations"][0]
    found |= {"segmentation": [[number + 9 for number in found["segmentation"][0]]], "bbox": None, "area": None}


OTHER_COUNTS = r"6 photos, 5 objects \(now 5 photos, 5 objects\), "
OTHER_OUTLINES = r"fingerprint [0-9a-f]{8} \(now fingerprint [0-9a-f]{8}\)\. Use the same"


@pytest.mark.parametrize(
    ("which", "change", "said"),
    [
        ("--train", without_the_last, f"--train {OTHER_COUNTS}"),
        ("--val", without_the_last, f"validation on {OTHER_COUNTS}"),
        ("--train", moved, f"objects of --train {OTHER_OUTLINES}"),
        ("--val", moved, f"objects of --val {OTHER_OUTLINES}"),
    ],
)
def test_resume_with_other_data_is_refused(tiny_coco, trained, tmp_path, capsys, which, change, said):
    """Of other photos, --val-share would hold back some that the model was trained on; other measurements choose another best; of other
    outlines, a part of the run would have learned, or was measured on, something else."""
    document = json.loads((tiny_coco / "coco.json").read_text())
    change(document)
    (tmp_path / "other.json").write_text(json.dumps(document))
    more = [*SAME, *validated(tiny_coco), "--steps", "4", which, str(tmp_path / "other.json"), "--resume"]
    assert finetune.main(arguments(tiny_coco, trained, *more)) == 2
    assert re.search(f"from a run with {said}", capsys.readouterr().err)


def test_a_second_run_in_one_folder_is_refused(tiny_coco, tmp_path, capsys):
    """Before the first checkpoint, too: both would write files of the same names."""
    holder = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", holder, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 2
        other.communicate(b"\n")
    assert f"another run is writing {tmp_path}" in capsys.readouterr().err


def test_resume_without_measurements_is_refused(tiny_coco, trained, capsys):
    """Otherwise the result would always be the best checkpoint of the earlier run."""
    assert finetune.main(arguments(tiny_coco, trained, "--freeze", "backbone", "--steps", "4", "--resume")) == 2
    assert "--val given (now left out)" in capsys.readouterr().err


def test_a_new_run_needs_a_new_folder(tiny_coco, trained, capsys):
    assert finetune.main(arguments(tiny_coco, trained, "--steps", "4")) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_an_incomplete_checkpoint_is_named(tiny_coco, trained, tmp_path, capsys):
    (tmp_path / "iter_4.pth").write_bytes((trained / "iter_4.pth").read_bytes()[:5000])
    (tmp_path / "last_checkpoint").write_text("iter_4.pth")
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "4", "--resume")) == 2
    said = capsys.readouterr().err
    assert "iter_4.pth: not a whole checkpoint" in said
    assert said.endswith("Start a new run in another folder.\n")


def test_a_checkpoint_damaged_at_its_end_names_the_one_before(tiny_coco, trained, tmp_path, capsys):
    """Moving it away, as the message says, lets the run continue there."""
    whole = (trained / "iter_4.pth").read_bytes()
    for name, content in (("iter_2.pth", whole), ("iter_10.pth", whole), ("iter_12.pth", whole[:-40])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "last_checkpoint").write_text("iter_12.pth")
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "4", "--resume")) == 2
    assert capsys.readouterr().err.endswith("Move it away: --resume then continues from iter_10.pth.\n")
    (tmp_path / "iter_12.pth").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "iter_10.pth"


@pytest.mark.parametrize("ended_at", ["iter_2.pth", "best_mask_ap_iter_2.pth"])
def test_a_full_disk_loses_no_checkpoint(tiny_coco, tmp_path, capsys, monkeypatch, ended_at):
    """One line with the file; what is there is whole, the best measured too, and --resume continues from it."""
    put = LocalBackend.put

    def on_a_full_disk(self, content, path):
        with files_no_larger_than(1000 if ended_at in saved else 2**40):
            put(self, content, path)

    saved, save = [], ConciseRunner.save_checkpoint
    monkeypatch.setattr(
        ConciseRunner, "save_checkpoint", lambda self, *a, **k: saved.append(k.get("filename") or a[1]) or save(self, *a, **k)
    )
    measured_as(monkeypatch, [0.3, 0.4])
    more = ["--steps", "2", "--val-every", "1", "--save-every", "1", *validated(tiny_coco)]
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "put", on_a_full_disk)
        assert finetune.main(arguments(tiny_coco, tmp_path, *more)) == 2
    assert f"jobs.finetune: {tmp_path}/{ended_at}: " in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.part*")) + list(tmp_path.glob("*.spare"))
    for path in tmp_path.glob("*.pth"):
        load_checkpoint(path)
    assert (tmp_path / "best_mask_ap_iter_1.pth").is_file()
    (tmp_path / "last_checkpoint").write_text("")
    measured_as(monkeypatch, [0.4])
    assert finetune.main(arguments(tiny_coco, tmp_path, *more, "--resume")) == 0


def test_a_run_killed_while_it_saves_a_better_checkpoint_keeps_the_best(tiny_coco, tmp_path, capsys, monkeypatch):
    """Where that is gone for good, it is said."""
    measured_as(monkeypatch, [0.4])
    more = ["--steps", "1", "--val-every", "1", *validated(tiny_coco)]
    assert finetune.main(arguments(tiny_coco, tmp_path, *more)) == 0
    best = tmp_path / "best_mask_ap_iter_1.pth"
    best.rename(best.with_suffix(".spare"))
    assert finetune.main(arguments(tiny_coco, tmp_path, *more, "--resume")) == 0
    assert best.is_file()
    best.unlink()
    capsys.readouterr()
    assert finetune.main(arguments(tiny_coco, tmp_path, *more, "--resume")) == 0
    assert f"{best}, the best measured, is gone" in capsys.readouterr().out


def test_the_command_to_give_after_a_full_disk_is_named(tiny_coco, tmp_path, capsys, monkeypatch):
    """With --resume where there is a checkpoint: without it a folder that holds a run is refused."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "iter_2.pth")

    monkeypatch.setattr(finetune, "finetune", full)
    for files, command in (((), "the same command again\n"), (("iter_1.pth",), "the same command again, with --resume\n")):
        for name in files:
            (tmp_path / name).touch()
        assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "2")) == 2
        assert capsys.readouterr().err.endswith(f"give {command}")


@pytest.mark.parametrize("workers", [None, "0", "1"])
def test_broken_photo_is_named(tiny_coco, tmp_path, capsys, monkeypatch, workers):
    """In one line, before the first step; one that breaks later, from a loader process too."""
    if workers:
        monkeypatch.setattr("jobs.training.run.check_photos", lambda *_: [])
    shutil.copytree(tiny_coco / "photos", tmp_path / "photos")
    whole = (tmp_path / "photos" / "3.png").read_bytes()
    (tmp_path / "photos" / "3.png").write_bytes(whole[:100])  # its size can be read, no pixel can
    more = ["--steps", "4", "--train-images", str(tmp_path / "photos"), "--workers", workers or "0"]
    assert finetune.main(arguments(tiny_coco, tmp_path / "run", *more)) == 2
    told = "" if workers else "1 of 6 photos cannot be decoded, first: "
    assert re.fullmatch(
        rf"jobs\.finetune: {told}\S*3\.png: not a readable photo .*\n", capsys.readouterr().err.splitlines(True)[-1]
    )


def measured_as(monkeypatch, scores):
    """Give each measurement one of these mask APs."""
    left, compute = iter(scores), validation.flat
    monkeypatch.setattr(validation, "flat", lambda *a: compute(*a) | {"mask_ap": next(left)})


def test_the_best_measured_is_the_result(tiny_coco, tmp_path, capsys, monkeypatch):
    """Not the last: early stopping ends a run when it has got no better twice, and what it has is saved. Small gains count."""
    measured_as(monkeypatch, [0.3, 0.31, 0.2, 0.1])
    val = ["--val", str(tiny_coco / "coco.json"), "--val-images", str(tiny_coco / "photos"), "--val-every", "2"]
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "20", "--early-stopping", "2", *val)) == 0
    assert "after 4 steps, the best measured (mask_ap 31.0)" in capsys.readouterr().out
    assert (tmp_path / "iter_8.pth").is_file()
    save_safetensors(load_checkpoint(tmp_path / "best_mask_ap_iter_4.pth"), tmp_path / "best.safetensors")
    result, best = (load_checkpoint(tmp_path / f"{name}.safetensors").state_dict for name in ("final", "best"))
    assert all(torch.equal(value, best[name]) for name, value in result.items())


@pytest.mark.parametrize(
    ("scores", "warmup", "last"),
    [([0.0] * 6, 0, 6), ([0.0, 0.0, 0.0, 0.2, 0.1, 0.1], 0, 6), ([0.2, 0.1, 0.1, 0.1, 0.1, 0.1], 3, 5)],
    ids=["nothing found yet", "first find late", "warm-up"],
)
def test_early_stopping_waits_for_the_first_find(tiny_coco, tmp_path, monkeypatch, scores, warmup, last):
    """With a patience of 2 it counts from the later of the warm-up's end and the first find."""
    measured_as(monkeypatch, scores)
    more = ["--steps", "6", "--val-every", "1", "--early-stopping", "2", "--warmup", str(warmup), *validated(tiny_coco)]
    assert finetune.main(arguments(tiny_coco, tmp_path, *more)) == 0
    assert (tmp_path / f"iter_{last}.pth").is_file()
    assert not (tmp_path / f"iter_{last + 1}.pth").exists()


def diverging(loss, from_step):
    """A loss function of the detector that is NaN from a step on."""
    calls = itertools.count(1)

    def wrapped(self, *args, **kwargs):
        losses = loss(self, *args, **kwargs)
        return losses if next(calls) < from_step else losses | {"loss_mask": losses["loss_mask"] * float("nan")}

    return wrapped


def test_a_diverged_run_stops_with_its_last_good_checkpoint(tiny_coco, tmp_path, capsys, monkeypatch):
    """At once, in a line that names --lr; the result is finite."""
    monkeypatch.setattr(RTMDetInsHead, "loss_by_feat", diverging(RTMDetInsHead.loss_by_feat, from_step=4))
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "20", "--save-every", "2")) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "after 3 steps the loss is not finite: the training diverged. Try again with a lower --lr, such as 0.0001" in told
    assert "final.safetensors has the last good checkpoint" in told
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "final.safetensors").state_dict.values())
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_2.pth")


def test_a_run_that_diverges_before_its_first_checkpoint_says_so(tiny_coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RTMDetInsHead, "loss_by_feat", diverging(RTMDetInsHead.loss_by_feat, from_step=1))
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "20")) == 2
    assert "No checkpoint was written before (--save-every 500)" in capsys.readouterr().err


def test_diverged_weights_replace_no_checkpoint(tiny_coco, tmp_path, capsys, monkeypatch):
    """An optimizer step can spoil the weights while the loss was still finite."""
    step = torch.optim.AdamW.step

    def spoiling(self, *args, **kwargs):
        step(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[-1]["params"][0].fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 2
    assert re.search(r"weight \S+ is not finite: the training diverged", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.pth"))


def test_torchrun_is_refused(tiny_coco, tmp_path, capsys, monkeypatch):
    """All its processes would write into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 2
    assert "torchrun started 2 processes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_any_ap_the_last_is_the_result(tiny_coco, tmp_path, capsys, monkeypatch):
    """Not the first of equal checkpoints, which is trained least."""
    measured_as(monkeypatch, [0.0, 0.0])
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "2", "--val-every", "1", *validated(tiny_coco))) == 0
    told = capsys.readouterr().out
    assert "written after 2 steps.\n" in told
    assert "mask_ap is 0 so far: train for more steps" in told


def test_a_moved_run_can_be_resumed(tiny_coco, tmp_path, capsys, monkeypatch):
    """In its new folder, and leaves the old one's files alone."""
    old, new = tmp_path / "old", tmp_path / "new"
    measured_as(monkeypatch, [0.3, 0.4])
    more = ["--steps", "2", "--val-every", "1", "--save-every", "1", *validated(tiny_coco)]
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, signal.SIGTERM))
        assert finetune.main(arguments(tiny_coco, old, *more)) == 128 + signal.SIGTERM
    shutil.copytree(old, new)
    assert finetune.main(arguments(tiny_coco, new, *more, "--resume")) == 0
    assert "after 2 steps, the best measured (mask_ap 40.0)" in capsys.readouterr().out
    assert (old / "best_mask_ap_iter_1.pth").is_file()
    assert not (new / "best_mask_ap_iter_1.pth").exists()


def signalling(train_step, number, send=signal.raise_signal):
    """A training step that gets a signal at its end."""

    def step(*args, **kwargs):
        outputs = train_step(*args, **kwargs)
        send(number)
        return outputs

    return step


def own_processes():
    return set(psutil.Process().children())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_a_run_with_a_result(tiny_coco, tmp_path, capsys, monkeypatch, number):
    """Loader processes ignore the signal and end with the training process; no files or processes remain."""
    others = own_processes()

    def to_all(number):
        """As a terminal signals its whole foreground group; a loader ends when this process tells it to."""
        loaders = own_processes() - others
        assert loaders
        subprocess.run(["kill", f"-{number}", *(str(one.pid) for one in (*loaders, psutil.Process()))], check=True)
        ended, _ = psutil.wait_procs(loaders, timeout=0.2)
        assert not ended

    monkeypatch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, number, to_all))
    with tempfile.TemporaryDirectory() as scratch:  # a short path: loaders have sockets in it
        monkeypatch.setattr(tempfile, "tempdir", scratch)
        assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "3", "--workers", "1")) == 128 + number
        assert not [name for name in os.listdir(scratch) if name.startswith("pymp-")]
    assert f"Stopped by {number.name} after 1 of 3 steps." in capsys.readouterr().out
    assert (tmp_path / "final.safetensors").is_file()
    _, left = psutil.wait_procs(own_processes() - others, timeout=30)
    assert not left


def test_a_signal_before_the_first_step_ends_the_run(tiny_coco, tmp_path, capsys, monkeypatch):
    """While mmdet reads the annotations, which takes seconds where there are many."""
    load = CocoDataset.load_data_list
    monkeypatch.setattr(CocoDataset, "load_data_list", lambda self: signal.raise_signal(signal.SIGTERM) or load(self))
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "2")) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM before the first step: nothing is saved." in capsys.readouterr().out
    assert not list(tmp_path.glob("*.pth"))


def test_a_signal_in_the_last_step_changes_nothing(tiny_coco, tmp_path, monkeypatch):
    monkeypatch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, signal.SIGTERM))
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 0


def test_ctrl_c_outside_of_the_training_is_one_line(tiny_coco, tmp_path, capsys, monkeypatch):
    def interrupted(*_args, **_how):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "read_annotations", interrupted)
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "1")) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "jobs.finetune: ended at once; nothing more was saved.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_result_and_resume_goes_on(tiny_coco, tmp_path, capsys, monkeypatch, number):
    """The step in flight is the last; nothing is lost."""
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, number))
        assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "3")) == 128 + number
    assert f"Stopped by {number.name} after 1 of 3 steps. --resume continues." in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "final.safetensors").spec.classes == ("ball", "egg")
    assert signal.getsignal(number) is before
    assert finetune.main(arguments(tiny_coco, tmp_path, "--steps", "3", "--resume")) == 0
    assert "after 3 steps" in capsys.readouterr().out


def test_the_curve_has_ap_at_its_steps_after_another_val_every(tiny_coco, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(console, "draw_curve", lambda scalars, *_: drawn.append(console.ap_by_step(scalars)))
    measured_as(monkeypatch, [0.1, 0.2, 0.3])
    more = ["--steps", "4", *validated(tiny_coco)]
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "train_step", signalling(BaseModel.train_step, signal.SIGTERM))
        assert finetune.main(arguments(tiny_coco, tmp_path, *more, "--val-every", "1")) == 128 + signal.SIGTERM
    assert finetune.main(arguments(tiny_coco, tmp_path, *more, "--val-every", "3", "--resume")) == 0
    assert drawn[-1]["mask"] == ([1, 3, 4], [0.1, 0.2, 0.3])


def test_rates_by_layer_change_nothing_else():
    """The longest prefix wins, from the start of the name on; norms and biases stay without weight decay."""
    network = build_network(nano_spec())
    rates = [["backbone", 0.1], ["backbone.stem", 0.01], ["conv", 5.0]]
    config = {"optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.5}}
    paramwise = {"norm_decay_mult": 0, "bias_decay_mult": 0, "bypass_duplicate": True}
    with pytest.raises(ValueError, match="--lr-mult conv: the network has no such layer"):
        RatesByLayer(config, paramwise | {"rates": rates})(network)
    groups = RatesByLayer(config, paramwise | {"rates": rates[:2]})(network).optimizer.param_groups
    by_name = {name: group for group in groups for name, p in network.named_parameters() if p is group["params"][0]}
    assert by_name["backbone.stem.0.conv.weight"]["lr"] == 0.01
    assert by_name["backbone.stage1.0.depthwise_conv.conv.weight"]["lr"] == 0.1
    assert by_name["neck.reduce_layers.0.conv.weight"]["lr"] == 1.0
    assert by_name["backbone.stage1.0.depthwise_conv.conv.weight"]["weight_decay"] == 0.5
    assert by_name["backbone.stem.0.bn.weight"]["weight_decay"] == 0


def test_same_seed_same_weights(tiny_coco, tmp_path):
    """Two runs with one seed give one result."""
    weights = []
    for number in (1, 2):
        work_dir = tmp_path / str(number)
        assert finetune.main(arguments(tiny_coco, work_dir, "--steps", "2", "--seed", "3", "--precision", "fp32")) == 0
        weights.append(load_checkpoint(work_dir / "final.safetensors").state_dict)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_a_gpu(tiny_coco, tmp_path, precision):
    """Two steps, one validation: weights come out, and they are numbers."""
    more = ["--steps", "2", "--val-every", "2", "--precision", precision]
    val = ["--val", str(tiny_coco / "coco.json"), "--val-images", str(tiny_coco / "photos")]
    assert finetune.main(arguments(tiny_coco, tmp_path, *more, *val)) == 0
    assert torch.cuda.max_memory_allocated() > 0
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "final.safetensors").state_dict.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image-size", "100"], "multiple of 32"),
        (["--val", "x.json"], "go together"),
        (["--early-stopping", "3"], "need --val"),
        (["--lr-mult", "backbone"], "LAYER=FACTOR"),
        (["--lr-mult", "backbone=-1"], "--lr-mult"),
        (["--lr", "nan"], "--lr must be above 0"),
        (["--weight-decay", "nan"], "--weight-decay is 0 or more, got nan"),
        (["--steps", "0"], "--steps is 1 or more, got 0"),
        (["--ema", "0.9998"], "--ema is 0 to 0.5, got 0.9998"),
        (["--scale-jitter", "2", "0.5"], "the smaller one first"),
        (["--sync-bn"], "--sync-bn joins the batch norms of several processes on GPUs"),
        (["--sync-bn", "--processes", "2"], "needs --processes above 1 and GPUs"),
    ],
)
def test_contradictions_are_refused(tiny_coco, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        settings_from_args(arguments(tiny_coco, tmp_path, *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_options_for_layers_add_up(tiny_coco, tmp_path):
    more = ["--freeze", "backbone", "--freeze", "neck", "--lr-mult", "bbox_head=0.1", "--lr-mult", "neck=0.5"]
    settings = settings_from_args(arguments(tiny_coco, tmp_path, *more))
    assert settings.freeze == ("backbone", "neck")
    assert settings.lr_mult == (("bbox_head", 0.1), ("neck", 0.5))


@pytest.mark.parametrize(
    ("frozen", "said"),
    [(["backbone", "neck", "bbox_head"], "nothing is left to train"), (["head"], r"no such layer.*bbox_head\.mask_head")],
)
def test_layers_that_cannot_be_frozen(frozen, said):
    with pytest.raises(ValueError, match=said):
        freeze(build_network(nano_spec()), frozen)


def test_only_batch_norms_have_statistics_to_fix():
    """A name of one of its parameters would fix nothing."""
    check_layers(build_network(nano_spec()), "--fix-batch-norm", ["backbone.stem.0.bn"], batch_norms=True)
    with pytest.raises(ValueError, match=r"--fix-batch-norm .*bn\.weight: the network has no such batch norm"):
        check_layers(build_network(nano_spec()), "--fix-batch-norm", ["backbone.stem.0.bn.weight"], batch_norms=True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--precision", "fp16"], "use bf16 or fp32"),
        (["--resume"], "there is no checkpoint"),
        (["--init-weights", "resnet.pth"], "0 of its 1 tensors fit this network, 0% of the backbone"),
        (["--model", "rtmdet-ins_tiny", "--init-weights", "nano"], "or of another size. Is --model right?"),
    ],
    ids=["fp16 without a GPU", "nothing to resume", "another network", "another size"],
)
def test_runs_that_cannot_begin(tiny_coco, trained, tmp_path, capsys, more, said):
    """In a line. A few layers of any RTMDet fit any other size; the rest would start from random numbers, unnoticed."""
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "resnet.pth")
    files = {"resnet.pth": str(tmp_path / "resnet.pth"), "nano": str(trained / "start.safetensors")}
    assert finetune.main(arguments(tiny_coco, tmp_path / "run", "--steps", "1", *(files.get(one, one) for one in more))) == 2
    assert said in capsys.readouterr().err


def test_a_gpu_gets_more_loaders(monkeypatch):
    """One loader where the CPU trains; beside a GPU one for every core but one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_workers() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_workers() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert default_workers() == 8


def test_only_fp16_scales_gradients(monkeypatch):
    """On a GPU too; and the scaler's announcement, mmengine's business, does not show."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kinds = {name: optim_wrapper_type(name)["type"] for name in ("fp32", "bf16", "fp16")}
    assert kinds == {"fp32": "Fp32OptimWrapper", "bf16": "Bf16OptimWrapper", "fp16": "Fp16OptimWrapper"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning, match="GradScaler"):
            torch.cuda.amp.GradScaler(enabled=False)
        with known_warnings_ignored():
            torch.cuda.amp.GradScaler(enabled=False)


@pytest.mark.parametrize(
    ("name", "said"), [("nope.pth", "there is no file nope.pth"), ("rtmdet-ins_x", "Did you mean rtmdet-ins_x_")]
)
def test_missing_weights_are_refused_before_anything_is_built(tiny_coco, tmp_path, name, said, monkeypatch, capsys):
    monkeypatch.setattr(run, "read_annotations", lambda *_, **__: pytest.fail("began to work"))
    assert finetune.main(arguments(tiny_coco, tmp_path, "--init-weights", name)) == 2
    assert (told := capsys.readouterr().err).startswith("jobs.finetune: --init-weights: ")
    assert said in told


def test_help_tells_defaults(capsys):
    """Once each, and none if there is none."""
    with pytest.raises(SystemExit):
        settings_from_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for told in (
        "peak learning rate (default: 0.002)",
        "random seed (default: 0)",
        "(default: one epoch, but at most 25 in a run); 0: none --best",
    ):
        assert told in said
    assert not re.search(r"default: (None|False|\[\]|==)|default: [^)]*\) \(default", said)
