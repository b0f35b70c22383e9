"""Samples follow from the seed and their number alone, and have the objects and crowds of the annotations."""

import itertools
import json

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from jobs import tiles
from jobs.annotations.datasets import read_annotations
from jobs.training.data.augment import train_transforms
from jobs.training.data.samples import NumberedSampler, TrainingPhotos, repeat_factors
from tests.support.training_samples import as_crowds, photos_of


@pytest.fixture(scope="module")
def photos(tiny_coco):
    init_default_scope("mmdet")
    return TrainingPhotos(
        seed=5,
        mosaic=0.5,
        mosaic_samples=40,
        transforms=train_transforms(64),
        ann_file=str(tiny_coco / "coco.json"),
        data_prefix={"img": f"{tiny_coco}/photos/"},
        metainfo={"classes": ("ball", "egg")},
        filter_cfg={"filter_empty_gt": False},
    )


def first(sampler, count):
    return list(itertools.islice(sampler, count))


def test_every_photo_comes_once_a_pass(photos):
    drawn = first(NumberedSampler(photos, seed=1), 18)
    assert [number for _, number in drawn] == list(range(18))
    passes = [sorted(photo for photo, _ in drawn[start : start + 6]) for start in (0, 6, 12)]
    assert passes == [list(range(6))] * 3
    assert drawn[:6] != [(photo, number - 6) for photo, number in drawn[6:12]]


@pytest.mark.parametrize("repeat_rare", [0.0, 0.9])
def test_a_run_that_goes_on_takes_the_samples_that_were_left(photos, repeat_rare):
    whole = first(NumberedSampler(photos, seed=1, repeat_rare=repeat_rare), 50)
    assert first(NumberedSampler(photos, seed=1, start=37, repeat_rare=repeat_rare), 13) == whole[37:]


def test_processes_share_one_row_of_samples(photos, monkeypatch):
    """Two processes with batches of 2 see, step for step, what one sees with batches of 4."""
    whole = first(NumberedSampler(photos, seed=1), 12)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("jobs.training.data.samples.get_dist_info", lambda rank=rank: (rank, 2))
        shares.append(first(NumberedSampler(photos, seed=1), 6))
    together = [sorted(shares[0][at : at + 2] + shares[1][at : at + 2]) for at in (0, 2, 4)]
    assert together == [sorted(whole[at : at + 4]) for at in (0, 4, 8)]


@pytest.mark.parametrize("number", [3, 8, 39, 41])
def test_a_sample_is_the_same_whatever_came_before(photos, number):
    """Pixels, boxes and masks; mosaics, too."""
    alone = photos[2, number]
    for other in range(5):
        photos[other, other]
    again = photos[2, number]
    assert torch.equal(alone["inputs"], again["inputs"])
    before, after = alone["data_samples"].gt_instances, again["data_samples"].gt_instances
    assert torch.equal(before.bboxes.tensor, after.bboxes.tensor)
    assert torch.equal(before.labels, after.labels)
    assert not torch.equal(alone["inputs"], photos[2, number + 1]["inputs"])


def test_mosaics_come_for_a_while(photos, monkeypatch):
    """Half of the first 40 samples, none after."""
    made = []
    mosaic = photos._transforms["mosaic"]
    monkeypatch.setitem(photos._transforms, "mosaic", lambda sample: made.append(photos._number) or mosaic(sample))
    for number in range(80):
        photos[number % 6, number]
    assert 10 <= len(set(made)) <= 30
    assert max(made) < 40


def test_no_flip_leaves_out_the_mirror():
    assert "RandomFlip" in [step["type"] for step in train_transforms(64)["finish"]]
    assert "RandomFlip" not in [step["type"] for step in train_transforms(64, flip=False)["finish"]]


def test_photos_of_rare_classes_come_more_often():
    """LVIS: the square root of threshold over share, of a photo's rarest class."""
    shown = [{0}] * 9 + [{0, 1}] + [set()] * 6
    factors = repeat_factors(shown, 0.25)
    assert factors[9] == pytest.approx(np.sqrt(0.25 / (1 / 16)))
    assert factors[:9].tolist() == [1.0] * 9
    assert factors[10:].tolist() == [1.0] * 6
    assert repeat_factors(shown, 0.0).tolist() == [1.0] * 16


def test_repeats_are_drawn(photos):
    """A factor between two whole numbers is met on average."""
    sampler = NumberedSampler(photos, seed=1)
    sampler._repeats = torch.tensor([1.0, 1.5, 1.0, 1.0, 1.0, 3.0])
    drawn = np.bincount([photo for photo, _ in first(sampler, 8500)], minlength=6)
    np.testing.assert_allclose(drawn / drawn[0], [1, 1.5, 1, 1, 1, 3], rtol=0.05)


def test_photos_without_objects_are_background(tiny_coco, tmp_path):
    """They are not replaced by others, and neither is one whose object is smaller than a pixel in the sample."""
    document = json.loads((tiny_coco / "coco.json").read_text())
    document["images"] = document["images"][4:]
    document["annotations"] = [found for found in document["annotations"] if found["image_id"] == 5]
    document["annotations"][0] |= {"segmentation": [[60, 40, 62, 40, 62, 42, 60, 42]], "bbox": None, "area": None}
    (tmp_path / "few.json").write_text(json.dumps(document))
    annotations = read_annotations(tmp_path / "few.json", tiny_coco / "photos", tmp_path, training=True)
    photos = photos_of(annotations, jitter=(0.25, 0.25))
    assert len(photos) == 2
    for number in range(10):
        sample = photos[number % 2, number]["data_samples"]
        assert sample.img_path.endswith(f"{5 + number % 2}.png")
        assert len(sample.gt_instances) == 0


def in_tiles(folder, scratch):
    """The same pictures in tiles; what shows less than three quarters of an ellipse is a crowd."""
    document = json.loads((folder / "coco.json").read_text())
    document["images"].pop()
    (scratch / "whole.json").write_text(json.dumps(document))
    arguments = [str(scratch / "whole.json"), "--images", str(folder / "photos"), "--output", str(scratch / "tiled")]
    assert tiles.main([*arguments, "--min-visible", "0.75"]) == 0
    return read_annotations(scratch / "tiled/annotations.json", scratch / "tiled/images", scratch, training=True)


@pytest.mark.parametrize("made", [as_crowds, in_tiles])
@pytest.mark.parametrize("mosaic", [0.0, 1.0], ids=["single", "mosaics"])
def test_crowds_as_run_lengths_are_in_the_samples(tiny_coco, tmp_path, made, mosaic):
    """mmdet would drop them: it reads no run lengths. What is bright is in the box of an object or of a crowd."""
    annotations = made(tiny_coco, tmp_path)
    photos = photos_of(annotations, mosaic, jitter=(0.8, 1.6))
    crowds = all_bright = elsewhere = 0
    for number in range(40):
        sample = photos[number % len(photos), number]
        found = sample["data_samples"]
        bright = sample["inputs"].numpy().max(0) > 170
        all_bright += bright.sum()
        boxes = torch.cat([found.gt_instances.bboxes.tensor, found.ignored_instances.bboxes.tensor])
        for left, top, right, bottom in boxes.int().tolist():
            bright[top : bottom + 1, left : right + 1] = False
        elsewhere += bright.sum()
        crowds += len(found.ignored_instances)
    assert annotations.report.crowds > 3
    assert crowds > 10
    assert elsewhere < 0.02 * all_bright


def test_run_lengths_that_reach_the_samples_are_an_error(tiny_coco, tmp_path):
    """Annotations that were not read for training."""
    as_crowds(tiny_coco, tmp_path)
    photos = photos_of(read_annotations(tmp_path / "crowds.json", tiny_coco / "photos", tmp_path))
    with pytest.raises(TypeError, match="run lengths where training needs rings"):
        photos[1, 0]
