"""The post-processing of CUDA graphs against the one that looks at the data, on a CPU: the same, or a word that it may not be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from pipeline.images.letterbox import make_letterbox, pad_batch
from pipeline.inference.cuda.postprocess import (
    LIMITS,
    MAX_CANDIDATES,
    NMS_PASSES,
    FixedPostProcessor,
    encode_options,
    to_instances,
)
from pipeline.inference.postprocess import PostProcessor
from pipeline.model.head_outputs import RawOutputs
from pipeline.model.kernel_branch import KernelBranch
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, Instances, Letterbox
from tests.support.seeded import SIZE_PX, loaded_photo, seeded_checkpoint

SHAPES_HW = [(480, 640), (100, 1000), (1000, 100), (300, 200), (64, 64), (20, 30)]
CLASSES = 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small operations: two threads of torch's would wait for each other beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def network_outputs(size: str) -> tuple[RawOutputs, list[Letterbox], KernelBranch]:
    """Of six photos of as many shapes."""
    network = RawNetwork(seeded_checkpoint(size).network(), SIZE_PX)
    images = [loaded_photo(hw, seed) for seed, hw in enumerate(SHAPES_HW)]
    with torch.inference_mode():
        outputs = network(torch.from_numpy(pad_batch(images, SIZE_PX)))
    return outputs, [image.letterbox for image in images], network.kernel_branch


class Both:
    """The two ways, on the same outputs.

    Args:
        input_size: side of the network input, pixels.
        branch: that predicts mask parameters.
    """

    def __init__(self, input_size: int, branch: KernelBranch) -> None:
        self.exact = PostProcessor((input_size, input_size), branch)
        self.fixed = FixedPostProcessor((input_size, input_size), branch)

    def run(
        self, outputs: RawOutputs, letterboxes: list[Letterbox], options: list[DetectOptions]
    ) -> tuple[list[Instances], list[Instances], list[bool]]:
        """What each finds, and which of the latter it calls exact."""
        image_options = torch.from_numpy(encode_options(letterboxes, options, outputs.class_logits.shape[-1]))
        summary, masks = (part.numpy() for part in self.fixed(outputs, image_options))
        found = to_instances(summary, masks, letterboxes)
        return self.exact(outputs, letterboxes, options), found, (summary[:, 1] == 1).tolist()


def made_up(logits: dict[int, float], reach_px: dict[int, tuple[float, float, float, float]], size: int = 256) -> RawOutputs:
    """One image's outputs: class 0's logits and boxes at some positions, nothing elsewhere."""
    count = sum((size // stride) ** 2 for stride in (8, 16, 32))
    random = torch.Generator().manual_seed(0)
    class_logits, distances = torch.full((1, count, CLASSES), -20.0), torch.zeros(1, count, 4)
    for place, logit in logits.items():
        class_logits[0, place, 0] = logit
        distances[0, place] = torch.tensor(reach_px[place])
    features, masks = (torch.randn(shape, generator=random) for shape in ((1, count, 6), (1, 8, size // 8, size // 8)))
    return RawOutputs(class_logits, distances, features, masks)


def small_branch() -> KernelBranch:
    """One 3x3 layer, seeded."""
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(3, 5, 9 * 6, generator=random) * 0.3, torch.randn(3, 169, 5, generator=random) * 0.3]
    return KernelBranch(weights, [torch.randn(one.shape[:2], generator=random) for one in weights], (8, 16, 32))


def assert_same(one: Instances, other: Instances) -> None:
    """Equal but for the last bits of a matrix product of another shape."""
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    np.testing.assert_allclose(one.mask_logits.astype(np.float32), other.mask_logits.astype(np.float32), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("size", ["nano", "tiny"])
@pytest.mark.parametrize(
    "wanted",
    [
        DetectOptions(0.05),
        DetectOptions(0.05, 7),
        DetectOptions(0.05, 100, frozenset({0, 3, 17, 999})),
        DetectOptions(0.2),
        DetectOptions(1.0),
    ],
    ids=["low threshold", "few", "labels", "high threshold", "nothing"],
)
def test_it_finds_the_same(size, wanted):
    """Six shapes in a batch."""
    outputs, letterboxes, branch = network_outputs(size)
    expected, found, exact = Both(SIZE_PX, branch).run(outputs, letterboxes, [wanted] * len(letterboxes))
    assert all(exact)
    assert (sum(map(len, expected)) > 0) == (wanted.score_threshold < 1)
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


def test_every_image_has_its_own_options():
    """Masks of all images lie side by side; none takes another's."""
    outputs, letterboxes, branch = network_outputs("tiny")
    options = [DetectOptions(0.05, most) for most in (3, 100, 1, 50)] + [DetectOptions(1.0), DetectOptions(0.1)]
    expected, found, exact = Both(SIZE_PX, branch).run(outputs, letterboxes, options)
    assert all(exact)
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


def test_a_row_that_no_image_fills_gives_nothing():
    """Its thresholds are 1."""
    outputs, letterboxes, branch = network_outputs("nano")
    image_options = torch.ones(len(letterboxes), 1 + LIMITS)
    image_options[:2] = torch.from_numpy(encode_options(letterboxes[:2], [DetectOptions(0.05)] * 2, 1))
    summary, _ = FixedPostProcessor((SIZE_PX, SIZE_PX), branch)(outputs, image_options)
    assert (summary[:2, 0] > 0).all()
    assert (summary[2:, 0] == 0).all()


def test_boxes_in_the_padding_suppress_but_are_not_returned():
    """As in mmdet, whose NMS sees them before they are clipped to the image."""
    in_padding, in_image = 32 * 20 + 2, 2
    reach = {in_padding: (8.0, 8.0, 8.0, 40.0), in_image: (8.0, 0.0, 40.0, 40.0)}
    outputs = made_up({in_padding: 3.0, in_image: 1.0}, reach)
    expected, found, exact = Both(256, small_branch()).run(outputs, [make_letterbox((100, 256), 256)], [DetectOptions(0.3)])
    assert exact == [True]
    assert len(found[0]) == 1
    assert_same(expected[0], found[0])


def test_nan_takes_its_position_out():
    """A network that breaks says nothing rather than something, and its other positions are as they were."""
    outputs = made_up({5: 2.0, 90: 1.0, 400: 1.5}, dict.fromkeys((5, 90, 400), (8.0,) * 4))
    outputs.class_logits[0, 5, 1] = torch.nan
    expected, found, exact = Both(256, small_branch()).run(outputs, [make_letterbox((256, 256), 256)], [DetectOptions(0.3)])
    assert exact == [True]
    assert len(expected[0]) == len(found[0]) == 2
    assert_same(expected[0], found[0])


def test_boxes_without_area_are_nothing():
    """They neither count nor suppress."""
    outputs = made_up({100: 3.0, 101: 1.0}, {100: (0.0, 0.0, 0.0, 0.0), 101: (8.0,) * 4})
    expected, found, exact = Both(256, small_branch()).run(outputs, [make_letterbox((256, 256), 256)], [DetectOptions(0.3)])
    assert exact == [True]
    assert len(found[0]) == 1
    assert_same(expected[0], found[0])


def test_too_many_candidates_are_reported():
    """A crowd on one spot uses up what is looked at before the few others come; asked for fewer, the same image is exact."""
    crowd = {place: 3.0 - place / 1000 for place in range(MAX_CANDIDATES + 20)}
    reach = {place: (place % 32 * 8.0, place // 32 * 8.0, 255.0 - place % 32 * 8, 255.0 - place // 32 * 8) for place in crowd}
    outputs = made_up(crowd, reach)
    run = Both(256, small_branch()).run
    expected, found, exact = run(outputs, [make_letterbox((256, 256), 256)], [DetectOptions(0.3)])
    assert exact == [False]
    assert len(expected[0]) == len(found[0]) == 1
    _, found, exact = run(outputs, [make_letterbox((256, 256), 256)], [DetectOptions(0.3, 1)])
    assert exact == [True]
    assert len(found[0]) == 1


def test_long_chains_of_overlaps_are_reported():
    """Each box overlaps the next one only: which stay depends on the first, and takes a pass for each."""
    for length, expected_exact in ((NMS_PASSES - 1, True), (NMS_PASSES + 10, False)):
        chain = {place: 3.0 - place / 100 for place in range(length)}
        reach = dict.fromkeys(chain, (0.0, 0.0, 36.0, 36.0))
        _, _, exact = Both(256, small_branch()).run(
            made_up(chain, reach), [make_letterbox((256, 256), 256)], [DetectOptions(0.3)]
        )
        assert exact == [expected_exact]


def test_more_than_there_is_room_for_is_cut():
    """There is room for 100 instances of an image, also if more are requested; the next image's masks are not overwritten."""
    outputs, letterboxes, branch = network_outputs("nano")
    both = Both(SIZE_PX, branch)
    _, most, _ = both.run(outputs, letterboxes, [DetectOptions(0.01, 300)] * len(letterboxes))
    _, expected, _ = both.run(outputs, letterboxes, [DetectOptions(0.01, 100)] * len(letterboxes))
    assert max(map(len, most)) == 100
    for one, other in zip(expected, most, strict=True):
        assert_same(one, other)


def test_wishes_are_written_where_told():
    """Into rows of a larger buffer, the others untouched."""
    out = np.full((3, CLASSES + LIMITS), -1, np.float32)
    rows = encode_options([make_letterbox((300, 600), 256)], [DetectOptions(0.25, 9, frozenset({1}))], CLASSES, out=out)
    np.testing.assert_allclose(out[0], [1.0, 0.25, 9, 256, 128, 600 / 256, 300 / 128, 600, 300, 32, 17])
    assert (out[1:] == -1).all()
    assert rows.base is out
