"""Crowds count neither as objects nor as background; the mask loss is mmdet's, of at most 64 positives of a photo."""

from jobs.training.network.losses import (  # isort: skip  (before mmdet)
    POSITIVES_A_PHOTO,
    center_of_mass,
    leave_crowds_out,
    mmdet_center_of_mass,
    save_mask_memory,
    spread,
)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
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


MASKS_SIDE = 128


def losses_of(*photos, changed):
    """All losses, gradients, and the number of positives that masks were predicted for, by photo."""
    torch.manual_seed(0)
    network = build_network(nano_spec(("person",), MASKS_SIDE)).eval()
    head, predicted = network.bbox_head, []
    predict = head._mask_predict_by_feat_single
    head._mask_predict_by_feat_single = lambda *given: predicted.append(len(given[1])) or predict(*given)
    if changed:
        save_mask_memory(network)
    pixels = torch.randn(len(photos), 3, MASKS_SIDE, MASKS_SIDE)
    with known_warnings_ignored():
        losses = network.loss(pixels, [sample_of(boxes, MASKS_SIDE) for boxes in photos])
    losses["loss_mask"].backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return losses, grads, predicted


FEW = [[8, 8, 40, 60], [50, 20, 100, 90]]
MANY = [[12 * x, 12 * y, 12 * x + 12, 12 * y + 12] for x in range(10) for y in range(10)]


@pytest.mark.parametrize("photos", [(FEW,), (FEW, []), ([],)], ids=["objects", "one photo without", "none"])
def test_losses_and_gradients_equal_mmdets(photos):
    theirs, their_grads, _ = losses_of(*photos, changed=False)
    ours, our_grads, _ = losses_of(*photos, changed=True)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-6, atol=1e-9)


def test_a_photo_of_many_objects_has_64_masks_in_the_loss():
    """The other losses are unchanged, and the mask loss, still a mean, differs little."""
    theirs, _, all_positives = losses_of(MANY, FEW, changed=False)
    ours, _, positives = losses_of(MANY, FEW, changed=True)
    assert all_positives[0] > POSITIVES_A_PHOTO
    assert positives == [POSITIVES_A_PHOTO, all_positives[1]]
    torch.testing.assert_close(ours["loss_mask"], theirs["loss_mask"], rtol=0.05, atol=0)
    for name in ("loss_cls", "loss_bbox"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 40))
def test_points_are_spread_over_all_objects(owners, most):
    """An object keeps its share of the points, up to rounding; none counts twice."""
    chosen = spread(torch.tensor(owners, dtype=torch.int64), most).tolist()
    assert len(chosen) == len(set(chosen)) == min(len(owners), most)
    share = len(chosen) / max(len(owners), 1)
    for owner in set(owners):
        assert abs(sum(owners[point] == owner for point in chosen) - share * owners.count(owner)) <= 1


@given(arrays(np.bool_, st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 40))))
def test_centres_of_mass_equal_mmdets(masks):
    given_masks = torch.from_numpy(masks)
    assert torch.equal(center_of_mass(given_masks), mmdet_center_of_mass(given_masks, 1e-7))
