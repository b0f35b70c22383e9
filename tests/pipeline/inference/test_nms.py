"""pipeline.inference.nms against the sequential algorithm, written down plainly."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference import nms
from pipeline.model.compiled_ops import greedy_nms as sequential_nms


def make_image(count: int, labels: int, seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * spread
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=random) * 60], 1)
    return boxes, torch.randint(labels, (count,), generator=random)


def expected(boxes: torch.Tensor, labels: torch.Tensor, most: int) -> list[int]:
    scores = torch.arange(len(boxes), 0, -1).float()
    kept = [torch.where(labels == label)[0] for label in labels.unique()]
    kept = [own[sequential_nms(boxes[own], scores[own], 0.6)] for own in kept]
    return sorted(torch.cat(kept).tolist())[:most] if kept else []


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    labels=st.integers(1, 5),
    spread=st.sampled_from([5.0, 60.0, 400.0]),
    most=st.sampled_from([1, 7, 100]),
    block=st.sampled_from([4, 32, 256]),
    seed=st.integers(0, 10_000),
)
def test_every_image_keeps_what_the_sequential_algorithm_keeps(counts, labels, spread, most, block, seed):
    """Blocks, padding, limits and neighbours in the batch change nothing."""
    images = [make_image(count, labels, seed + n, spread) for n, count in enumerate(counts)]
    width = max(counts)
    boxes = torch.zeros(len(counts), width, 4)
    classes, valid = boxes[..., 0].long(), boxes[..., 0].bool()
    for row, (own_boxes, own_labels) in enumerate(images):
        boxes[row, : len(own_boxes)], classes[row, : len(own_boxes)], valid[row, : len(own_boxes)] = own_boxes, own_labels, True
    original, nms.BLOCK = nms.BLOCK, block
    try:
        kept = nms.greedy_nms(boxes, classes, valid, valid, 0.6, torch.full((len(counts),), most))
    finally:
        nms.BLOCK = original
    assert [torch.where(row)[0].tolist() for row in kept] == [expected(*image, most) for image in images]


def test_unwanted_boxes_suppress_but_do_not_count():
    """The first box, unwanted, suppresses the second; the third is the one that may be kept."""
    boxes = torch.tensor([[[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [80, 0, 90, 10.0]]])
    wanted, valid = torch.tensor([[False, True, True, True]]), torch.ones(1, 4).bool()
    kept = nms.greedy_nms(boxes, torch.zeros(1, 4).long(), valid, wanted, 0.6, torch.tensor([1]))
    assert kept.tolist() == [[False, False, True, False]]


def test_a_chain_of_overlaps_alternates():
    """Each box overlaps only the next: the first, third, fifth ... stay."""
    left = torch.arange(9).float() * 2
    boxes = torch.stack([left, torch.zeros(9), left + 10, torch.full((9,), 10.0)], 1)[None]
    kept = nms.greedy_nms(
        boxes, torch.zeros(1, 9).long(), torch.ones(1, 9).bool(), torch.ones(1, 9).bool(), 0.6, torch.tensor([100])
    )
    assert kept[0].tolist() == [n % 2 == 0 for n in range(9)]
