"""Several processes make the steps of one, and a lost one is replaced. Those that start Ray are slow: minutes on a busy machine."""

import json
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil
import pytest

pytest.importorskip("pyarrow", reason="Ray Train needs the extra `cluster`")

from jobs.training.cluster import too_small

SIDE = 240
FIXED = ["--fix-batch-norm", "backbone", "neck", "bbox_head", "--precision", "fp32"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight pictures of nine ellipses each. With hardly any object mmdet's losses are divided by 1 instead of less, in each process."""
    folder, random = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    (folder / "photos").mkdir()
    images, annotations = [], []
    for number in range(1, 9):
        pixels = random.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
        for place in range(9):
            centre = [SIDE * (1 + 2 * (place % 3)) // 6, SIDE * (1 + 2 * (place // 3)) // 6]
            outline = cv2.ellipse2Poly(centre, random.integers(18, 38, 2).tolist(), 0, 0, 360, 20)
            cv2.fillPoly(pixels, [outline], (60, 120, 240))
            x, y, width, height = cv2.boundingRect(outline)
            found = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + place % 2, "iscrowd": 0}
            shape = {"area": width * height, "bbox": [x, y, width, height], "segmentation": [outline.ravel().tolist()]}
            annotations.append(found | shape)
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), pixels)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "egg"}]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def command(many, work_dir, *more):
    common = ["--train", str(many / "coco.json"), "--train-images", str(many / "photos"), "--work-dir", str(work_dir)]
    small = ["--image-size", "128", "--workers", "0", "--warmup", "0", "--lr", "2e-5", "--log-every", "1", *FIXED]
    return [sys.executable, "-m", "jobs.finetune", *common, *small, *more]


def start(*args):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def losses(work_dir):
    """Loss by step; of a step that was made twice the later one."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def alone(many, tmp_path_factory):
    """Losses of one process with batches of 4."""
    work_dir = tmp_path_factory.mktemp("alone") / "run"
    with start(many, work_dir, "--steps", "20", "--batch-size", "4") as running:
        told, _ = running.communicate(timeout=300)
    assert running.returncode == 0, told[-2000:]
    return losses(work_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_make_the_steps_of_one(many, tmp_path, alone):
    """Losses equal to 1e-3 over 20 steps, in float32, by gloo."""
    with start(many, tmp_path / "run", "--steps", "20", "--batch-size", "2", "--processes", "2") as running:
        told, _ = running.communicate(timeout=400)
    assert running.returncode == 0, told[-4000:]
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-3)
    assert (tmp_path / "run" / "final.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_process_is_replaced(many, tmp_path, alone):
    """Killed after its second checkpoint; the run goes on from there with the losses of one that lost nothing."""
    work_dir = tmp_path / "run"
    more = ["--steps", "20", "--batch-size", "2", "--processes", "2", "--save-every", "4"]
    with start(many, work_dir, *more) as running:
        wait_for(lambda: (work_dir / "iter_8.pth").exists() or running.poll() is not None)
        trainers = [one for one in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(one.info["cmdline"] or ())]
        assert len(trainers) == 2
        trainers[-1].kill()
        told, _ = running.communicate(timeout=400)
    assert running.returncode == 0, told[-4000:]
    assert losses(work_dir) == pytest.approx(alone, rel=1e-3)


def test_a_cluster_without_room_is_reported():
    """Ray waits for it without an end."""
    assert too_small(2, {"CPU": 2.0}, "CPU") == ""
    assert "needs 4 CPUs and the cluster has 2" in too_small(4, {"CPU": 2.0}, "CPU")
    assert "needs 2 GPUs and the cluster has 0" in too_small(2, {"CPU": 2.0}, "GPU")


def wait_for(ready, deadline_s=300):
    end = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)
