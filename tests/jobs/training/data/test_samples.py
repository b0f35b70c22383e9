"""Samples follow from the seed and their number alone."""

import itertools

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from jobs.training.data.augment import train_transforms
from jobs.training.data.samples import NumberedSampler, TrainingPhotos, repeat_factors


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
