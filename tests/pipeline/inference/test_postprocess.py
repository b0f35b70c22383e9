"""RawNetwork and post-processing against mmdet's own predict, on seeded weights that give some 100 instances."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from benchmarks.mmdet_reference import MmdetReference, Reference
from pipeline.images.letterbox import pad_batch
from pipeline.inference.postprocess import PostProcessor
from pipeline.inference.selection import select
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, Instances, LoadedImage
from tests.support.seeded import SIZE_PX, loaded_photo, photo, seeded_checkpoint

ALL_OFFICIAL = [pytest.param(size, marks=pytest.mark.slow) for size in ("s", "m", "l", "x")]
LOW = DetectOptions(score_threshold=0.05)


class Pipeline:
    """Network and post-processing without an engine, in float32."""

    def __init__(self, size: str) -> None:
        checkpoint = seeded_checkpoint(size)
        self.network = RawNetwork(checkpoint.network(), SIZE_PX)
        self.postprocess = PostProcessor((SIZE_PX, SIZE_PX), self.network.kernel_branch)

    def detect(self, images: list[LoadedImage], options: list[DetectOptions]) -> list[Instances]:
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(pad_batch(images, SIZE_PX)))
        return self.postprocess(outputs, [image.letterbox for image in images], options)


@cache
def pipeline(size: str) -> Pipeline:
    return Pipeline(size)


@cache
def reference(size: str) -> MmdetReference:
    return MmdetReference(seeded_checkpoint(size), score_threshold=0.05, max_detections=200)


def touching_the_image(found: Reference, wh: tuple[int, int], most: int = 100) -> Reference:
    """mmdet's boxes clipped to the image, without those that lie wholly in the padding."""
    boxes = np.minimum(found.boxes, np.float32([*wh, *wh]))
    touching = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))[:most]
    return Reference(boxes[touching], *(part[touching] for part in found[1:]))


def masks_in_network_pixels(found: Instances) -> np.ndarray:
    """(N, *scaled_hw) bool, by the interpolation mmdet uses."""
    return (upsampled_logits(found) > 0).numpy()


def masks_in_original_pixels(found: Instances) -> np.ndarray:
    """(N, *original_hw) bool, by the two interpolations mmdet uses, each axis by its own factor."""
    return (interpolate(upsampled_logits(found)[None], found.letterbox.original_hw, mode="bilinear")[0] > 0).numpy()


def upsampled_logits(found: Instances) -> torch.Tensor:
    height, width = found.letterbox.scaled_hw
    return interpolate(torch.from_numpy(found.mask_logits).float()[None], scale_factor=8, mode="bilinear")[0, :, :height, :width]


def ious(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """IoU of each pair of masks; 1 where both are empty."""
    union = (ours | theirs).sum((1, 2))
    return np.where(union == 0, 1.0, (ours & theirs).sum((1, 2)) / np.maximum(union, 1))


@pytest.mark.parametrize("size", ["nano", "tiny", *ALL_OFFICIAL])
def test_it_finds_what_mmdet_finds(size):
    """Same instances, in the same order but for ties: boxes within 0.5 px, scores within 0.01, masks IoU at least 0.99."""
    hw = (480, 640)
    ours = pipeline(size).detect([loaded_photo(hw)], [LOW])[0]
    theirs = touching_the_image(reference(size).predict(photo(hw)), hw[::-1])
    assert len(ours) == len(theirs.scores) > 50
    theirs = in_the_order_of(ours, theirs)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=0.01)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.5)
    assert ious(masks_in_original_pixels(ours), theirs.masks).mean() >= 0.99


def in_the_order_of(ours: Instances, theirs: Reference) -> Reference:
    """mmdet's instances, those whose scores differ by less than rounding put into our order; each is taken once."""
    apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).sum(2) + 1e3 * (ours.labels[:, None] != theirs.labels[None])
    order = apart.argmin(1)
    assert sorted(order) == list(range(len(order)))
    assert np.abs(order - np.arange(len(order))).max() <= 2
    return Reference(*(part[order] for part in theirs))


@pytest.mark.parametrize("hw", [(60, 600), (600, 60), (38, 600)], ids=["10:1 wide", "10:1 tall", "15:1 wide"])
def test_masks_lie_right_where_mmdets_own_drift(hw):
    """In network pixels mmdet's masks are ours. In original pixels they are not: mmdet swaps the factors of w and h."""
    ours = pipeline("nano").detect([loaded_photo(hw)], [LOW])[0]
    height, width = ours.letterbox.scaled_hw
    truth = touching_the_image(reference("nano").predict(photo(hw), rescale=False), (width, height))
    assert ious(masks_in_network_pixels(ours), truth.masks[:, :height, :width]).mean() >= 0.99
    theirs = touching_the_image(reference("nano").predict(photo(hw)), hw[::-1])
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.5)
    drifted, swap = theirs.masks, ours.letterbox.to_original_xy
    swap_hw = round(drifted.shape[1] * swap[1] / swap[0]), round(drifted.shape[2] * swap[0] / swap[1])
    undone = interpolate(torch.from_numpy(drifted).float()[None], swap_hw)[0, :, : hw[0], : hw[1]].bool().numpy()
    right = masks_in_original_pixels(ours)
    edges = [n for n, mask in enumerate(right) if 0.05 < mask.mean() < 0.95]
    assert overlap(right[edges], undone[edges]) > 0.98 > overlap(right[edges], drifted[edges])


def overlap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean IoU where both have pixels at all: mmdet's masks of a wide image do not even cover its width."""
    rows, columns = (min(pair) for pair in zip(ours.shape[1:], theirs.shape[1:], strict=True))
    return float(ious(ours[:, :rows, :columns], theirs[:, :rows, :columns]).mean())


def test_eight_at_once_equal_eight_alone():
    """Images of many shapes, in one batch and one by one."""
    shapes = [(480, 640), (100, 1000), (1000, 100), (320, 320), (64, 64), (300, 310), (480, 640), (20, 30)]
    images = [loaded_photo(hw, seed) for seed, hw in enumerate(shapes)]
    together = pipeline("nano").detect(images, [LOW] * 8)
    alone = [pipeline("nano").detect([image], [LOW])[0] for image in images]
    assert min(map(len, alone)) > 0
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_options_hold_for_their_own_image():
    """Thresholds, limits and labels differ within one batch; each image comes out as if it were alone."""
    image = loaded_photo((480, 640))
    labels = frozenset({3, 17, 40, 999})
    options = [
        LOW,
        DetectOptions(0.2),
        DetectOptions(0.05, 3),
        DetectOptions(0.05, 100, labels),
        DetectOptions(1.0),
        DetectOptions(0.0, 5),
    ]
    together = pipeline("tiny").detect([image] * len(options), options)
    for own, found in zip(options, together, strict=True):
        assert_same(found, pipeline("tiny").detect([image], [own])[0])
        assert (found.scores > own.score_threshold).all()
        assert len(found) <= own.max_detections
    assert set(together[3].labels) <= labels
    assert len(together[4]) == 0
    assert_same(
        together[2],
        replace(together[0], **{f: getattr(together[0], f)[:3] for f in ("boxes", "scores", "labels", "mask_logits")}),
    )


def test_no_instances_at_all():
    """Nothing above the threshold: empty arrays of the right shapes."""
    found = pipeline("nano").detect([loaded_photo((100, 1000))] * 2, [DetectOptions(0.9999)] * 2)
    assert [len(one) for one in found] == [0, 0]


def test_boxes_end_at_the_image():
    """mmdet clamps to the padded square; here no box leaves the image, and none is empty."""
    found = pipeline("nano").detect([loaded_photo((100, 1000))], [LOW])[0]
    assert (found.boxes >= 0).all()
    assert (found.boxes <= np.float32([1000, 100, 1000, 100])).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_the_selection_is_compiled_once():
    """No image waits for the compilation of another array layout."""
    pipeline("nano").detect([loaded_photo((64, 64)), loaded_photo((48, 64))], [LOW] * 2)
    assert len(select.signatures) == 1


def test_torchs_threads_are_given_back():
    """Post-processing runs on one CPU thread; other users of torch in the process keep their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pipeline("nano").detect([loaded_photo((64, 64))], [LOW])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def assert_same(one: Instances, other: Instances) -> None:
    """Equal but for the last bits of a matrix product of another shape."""
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05, rtol=1e-4)
    assert one.mask_logits.shape == other.mask_logits.shape
    if len(one):
        assert ious(one.mask_logits > 0, other.mask_logits > 0).mean() > 0.999
