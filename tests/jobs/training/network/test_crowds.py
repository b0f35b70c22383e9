"""Regions marked iscrowd count neither as people nor as background."""

from jobs.training.network.crowds import leave_crowds_out  # isort: skip  (before mmdet)

import pytest
import torch
from mmengine.structures import InstanceData

from jobs.third_party import known_warnings_ignored
from pipeline.model.spec import build_network, nano_spec
from tests.support.training_samples import sample_of

SIDE = 64


def _photo(objects, crowds):
    sample = sample_of(objects, SIDE)
    sample.ignored_instances = InstanceData(bboxes=torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4))
    return sample


def _class_loss(objects, crowds, *, left_out):
    torch.manual_seed(0)
    network = build_network(nano_spec(("person",), SIDE))
    if left_out:
        leave_crowds_out(network)
    with known_warnings_ignored():
        losses = network.loss(torch.zeros(1, 3, SIDE, SIDE), [_photo(objects, crowds)])
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
