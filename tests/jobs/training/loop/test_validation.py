"""Measurements during training: mmdet's numbers, without its full-size masks."""

import json
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import Annotations, AnnotationsError, read_annotations
from jobs.evaluation.metrics_coco import STATISTICS, coco_metrics
from jobs.evaluation.predictions import predict_with_mmdet
from jobs.training.loop.validation import ahead, check_defined, flat, predict
from pipeline.model.checkpoints import load_checkpoint
from pipeline.model.zoo import locate

pytestmark = pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast", "ignore:torch.meshgrid", "ignore:__array__")
MODEL = "rtmdet-ins_nano_person"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Noise that the embedded model takes for persons, annotated with what mmdet finds best there, at several sizes."""
    folder, random = tmp_path_factory.mktemp("people"), np.random.default_rng(3)
    (folder / "photos").mkdir()
    photos = []
    for number, (width, height) in enumerate([(200, 160), (640, 480), (90, 300)], start=1):
        small = random.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
        photos.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    truth = {"images": photos, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (folder / "empty.json").write_text(json.dumps(truth))
    annotations = Annotations(folder / "empty.json", folder / "photos", ("person",), 3, "")
    found = predict_with_mmdet(load_checkpoint(locate(MODEL)), annotations, 320)
    for number, one in enumerate(sorted(found, key=lambda one: -one["score"])[:20:2], start=1):
        area = float(coco_mask.area(one["segmentation"]))
        truth["annotations"].append(one | {"id": number, "area": area, "iscrowd": 0})
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder, truth, found


def test_the_same_ap_as_mmdet(people):
    """To 0.1 per cent where both see the same pixels; a JPEG twice as large as the input is decoded at half its size, as in serving."""
    folder, truth, found = people
    network = load_checkpoint(locate(MODEL)).network()
    ours = flat(coco_metrics(truth, predict(network, truth, folder / "photos", 320, batch_size=2)))
    theirs = flat(coco_metrics(truth, found))
    assert theirs["mask_ap"] > 0.1
    for name in (f"{kind}_{statistic}" for kind in ("box", "mask") for statistic in STATISTICS):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name


def test_the_network_stays_as_it_is(people):
    """It goes on to train: its batch norms must not be folded."""
    folder, truth, _ = people
    network = load_checkpoint(locate(MODEL)).network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predict(network, truth, folder / "photos", 320)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_unreadable_photos_are_named(people, tmp_path):
    _, truth, _ = people
    with pytest.raises(AnnotationsError, match=r"^1\.png: "):
        predict(load_checkpoint(locate(MODEL)).network(), truth, tmp_path, 320)


def test_few_photos_wait():
    """Memory does not grow with the number of photos."""
    begun, lock = [], threading.Lock()

    def load(item):
        with lock:
            begun.append(item)
        return item

    taken = ahead(load, range(100), threads=2)
    assert next(taken) == 0
    assert len(begun) <= 6
    assert list(taken) == list(range(1, 100))


def test_per_label_ap_is_kept():
    metrics = dict.fromkeys(STATISTICS, 0.5) | {"ap_small": None, "per_label": {"a/b": 0.5}}
    measured = flat({"box": metrics, "mask": metrics})
    assert measured["mask_ap/a/b"] == 0.5
    assert measured["box_ap_small"] is None


def test_a_metric_of_no_object_is_refused_before_training(tiny_coco, tmp_path):
    """The objects are from 28 to 56 px: without a large one, no checkpoint would be the best."""
    val = read_annotations(tiny_coco / "coco.json", tiny_coco / "photos", tmp_path, training=True)
    check_defined("mask_ap_medium", val)
    with pytest.raises(AnnotationsError, match=r"--best-metric box_ap_large: coco\.json has no objects that it is of"):
        check_defined("box_ap_large", val)


PROGRAM = """
import resource, sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from jobs.training.loop.validation import predict
from pipeline.model.checkpoints import load_checkpoint, save_safetensors
from pipeline.model.zoo import locate
network = load_checkpoint(locate("rtmdet-ins_nano_person")).network()
torch.nn.init.constant_(network.bbox_head.rtm_cls[0].bias, 3.0)  # 100 objects a photo
truth = json.loads(Path(sys.argv[1]).read_text())
found = predict(network, truth, Path(sys.argv[2]), 320)
assert len(found) > 30, len(found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kb(folder, width, height):
    """Peak memory of a process that measures one photo of this size with 100 objects."""
    folder.mkdir()
    cv2.imwrite(str(folder / "1.jpg"), np.full((height, width, 3), 90, np.uint8))
    truth = {"images": [{"id": 1, "file_name": "1.jpg", "width": width, "height": height}], "annotations": [], "categories": []}
    (folder / "truth.json").write_text(json.dumps(truth))
    command = [sys.executable, "-c", PROGRAM, str(folder / "truth.json"), str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout)


def test_memory_does_not_follow_the_size_of_the_photo(tmp_path):
    """100 masks of 12 megapixels would be 1.2 GB."""
    small, large = peak_kb(tmp_path / "small", 400, 300), peak_kb(tmp_path / "large", 4000, 3000)
    assert large < small + 100_000
