"""Regions marked iscrowd count neither as people nor as background."""

from jobs.training.network.crowds import leave_crowds_out  # isort: skip  (before mmdet)

import pytest
import torch
from mmengine.structures import InstanceData

from jobs.third_party import known_warnings_ignored
from pipeline.model.spec import build_network, nano_spec
from tests.support.training_samples import as_crowds, photos_of, sample_of

SIDE = 64


def _photo(objects, crowds):
    sample = sample_of(objects, SIDE)
    sample.ignored_instances = InstanceData(bboxes=torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4))
    return sample


def _network(side, *, left_out):
    torch.manual_seed(0)
    network = build_network(nano_spec(("ball", "egg"), side))
    if left_out:
        leave_crowds_out(network)
    return network


def _class_loss(objects, crowds, *, left_out):
    return _class_loss_of(_network(SIDE, left_out=left_out), torch.zeros(1, 3, SIDE, SIDE), [_photo(objects, crowds)])


def _class_loss_of(network, pixels, samples):
    with known_warnings_ignored():
        losses = network.loss(pixels, samples)
    return float(sum(loss.detach() for loss in losses["loss_cls"]))


def test_a_crowd_is_no_background():
    assert _class_loss([], [[0, 0, SIDE, SIDE]], left_out=False) > 0
    assert _class_loss([], [[0, 0, SIDE, SIDE]], left_out=True) == 0


def test_a_crowd_elsewhere_changes_its_own_points_alone():
    none = _class_loss([], [], left_out=True)
    half = _class_loss([], [[0, 0, SIDE / 2, SIDE]], left_out=True)
    assert none / 4 < half < none


def test_an_object_within_a_crowd_counts():
    whole = [[0, 0, SIDE, SIDE]]
    assert _class_loss([[8, 8, 40, 40]], whole, left_out=True) > 0
    assert _class_loss([[8, 8, 40, 40]], [], left_out=True) == pytest.approx(_class_loss([[8, 8, 40, 40]], [], left_out=False))


def test_a_crowd_of_a_file_reaches_the_loss(tiny_coco, tmp_path):
    """From COCO's run lengths, through the transforms of training."""
    photos = photos_of(as_crowds(tiny_coco, tmp_path))
    for number in range(1, 5):
        losses = []
        for left_out in (False, True):
            network, sample = _network(128, left_out=left_out), photos[number, number]
            batch = network.data_preprocessor({name: [value] for name, value in sample.items()}, training=True)
            losses.append(_class_loss_of(network, batch["inputs"], batch["data_samples"]))
        assert losses[1] < 0.95 * losses[0]
