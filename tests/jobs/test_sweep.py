"""A sweep's command line; two tiny trials by hand (-m slow)."""

import csv
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

pytest.importorskip("pyarrow")

from jobs.sweep import main
from jobs.training.run import read_sets


@pytest.fixture
def base(tiny_coco, tmp_path):
    common = ["--train", str(tiny_coco / "coco.json"), "--train-images", str(tiny_coco / "photos"), "--val-share", "0.34"]
    return [*common, "--work-dir", str(tmp_path / "new")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--vary", "lr=2..1"], "--vary lr=2..1: LOW..HIGH"),
        (["--vary", "image-size=320,500"], "--image-size is a multiple of 32, got 500"),
        (["--vary", "image-size=330..640"], "--image-size is a multiple of 32, got 330"),
        (["--vary", "lr=1e-3..1e-2", "--vary", "lr=1e-3,2e-3"], "--vary lr=1e-3,2e-3: --lr is given twice"),
        (["--vary", "colour=1,2"], "jobs.finetune has no option --colour"),
        (["--vary", "val-share=0.1,0.2"], "--val-share is the same in all trials"),
        (["--asha"], "--asha compares trials at the same step"),
        (["--val-share", "0"], "give --val"),
        (["--resume"], "--processes and --resume do not go with a sweep"),
    ],
)
def test_what_cannot_be_swept(base, tmp_path, capsys, more, said):
    """Reported before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main([*base, *more])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_fault_in_the_data_ends_the_sweep(base, tmp_path, capsys, monkeypatch):
    """Before Ray starts, instead of each trial."""
    monkeypatch.setattr("jobs.sweeping.trials.run_trials", lambda *_: pytest.fail("began to work"))
    assert main([*base, "--train-images", str(tmp_path)]) == 1
    assert "jobs.sweep: coco.json: 6 of 6 photos are missing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_a_sweep(base, tmp_path, capsys):
    (tmp_path / "trials.csv").write_text("trial\n")
    with pytest.raises(SystemExit):
        main([*base, "--work-dir", str(tmp_path)])
    assert "already holds a sweep" in capsys.readouterr().err


def test_the_photos_are_decoded_once(tiny_coco, base, tmp_path, monkeypatch):
    """By the sweep. Its trials get the copies that it found, so that they split the photos alike."""
    ran = []
    monkeypatch.setattr("jobs.sweeping.trials.run_trials", lambda *given: ran.append(given) or "best")
    photos = shutil.copytree(tiny_coco / "photos", tmp_path / "photos")
    shutil.copy(photos / "1.png", photos / "4.png")
    assert main([*base, "--train-images", str(photos)]) == 0
    *_, settings, copies = ran[0]
    assert copies == {"4.png": "1.png"}
    before = [part.document() for part in read_sets(settings)[:2]]
    monkeypatch.setattr("jobs.photo_copies.read_stored", lambda *_: pytest.fail("a photo is decoded again"))
    assert [part.document() for part in read_sets(settings, copies)[:2]] == before
    read_sets(replace(settings, val_share=0, val=tiny_coco / "coco.json", val_images=photos), {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_that_is_ended_has_the_trials_so_far(tiny_coco, tmp_path):
    """By SIGTERM during the second trial: exit status 143, and the table has the first one."""
    data = ["--train", tiny_coco / "coco.json", "--train-images", tiny_coco / "photos"]
    data += ["--val", tiny_coco / "coco.json", "--val-images", tiny_coco / "photos", "--work-dir", tmp_path / "w"]
    short = "--batch-size 2 --image-size 160 --workers 0 --warmup 0 --precision fp32 --trials 2 --vary steps=2,2000".split()
    sweep = subprocess.Popen(
        [sys.executable, "-m", "jobs.sweep", *map(str, data), "--steps", "2", *short], stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "w").glob("*/iter_500.pth")) and sweep.poll() is None:  # the second one measures every 500
        time.sleep(1)
    sweep.terminate()
    said = sweep.communicate(timeout=120)[1]
    assert sweep.returncode == 143, said
    assert "jobs.sweep: interrupted." in said
    rows = list(csv.DictReader((tmp_path / "w/trials.csv").read_text().splitlines()))
    assert sorted(row["ended"] for row in rows) == ["completed", "stopped early"]
    assert (tmp_path / "w/trials.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_tiny_trials(tiny_coco, tmp_path, capsys, monkeypatch):
    """By Optuna, with ASHA and relative paths: a row for each with its settings, the first as given; a plot, the best one's model."""
    pytest.importorskip("optuna")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tiny_coco)
    data = "--train coco.json --train-images photos --val coco.json --val-images photos --steps 8 --batch-size 2 --image-size 160"
    searched = (
        "--trials 2 --search bayes --asha --vary lr=1e-3..4e-3 --vary freeze=none,neck --workers 0 --warmup 0 --precision fp32"
    )
    status = main([*data.split(), *searched.split(), "--work-dir", str(tmp_path / "w")])
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "w/trials.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert all(0.001 <= float(row["lr"]) <= 0.004 and row["freeze"] in ("none", "neck") for row in rows)
    assert all(float(row["peak_gb"]) > 0.1 and row["ended"] in ("completed", "stopped early") for row in rows), rows
    for row in rows:
        files = (tmp_path / "w" / row["trial"]).glob("*/vis_data/*.json")
        logs = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert float(row["mask_ap"]) == pytest.approx(max(log["mask_ap"] for log in logs if "mask_ap" in log), abs=1e-3)
    assert len(list((tmp_path / "w/ray").glob("*/progress.csv"))) == 2, "Tune's record of all measurements, which the table needs"
    assert (tmp_path / "w/trials.png").read_bytes().startswith(b"\x89PNG")
    assert "Each trial: " in said
    assert "The first trial has the settings as given: lr 0.002, freeze none." in said
    assert [row["freeze"] for row in rows if float(row["lr"]) == 0.002] == ["none"]
    assert (status == 0) == (float(rows[0]["mask_ap"]) > 0)
    if status == 0:
        assert said.splitlines()[-1].endswith(f"{rows[0]['work_dir']}/final.safetensors")
