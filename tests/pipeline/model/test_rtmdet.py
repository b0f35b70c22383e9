"""What RawNetwork takes, and what it leaves of the head. Its outputs are compared with mmdet's in test_postprocess.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.model.rtmdet import RawNetwork
from tests.support.seeded import SIZE_PX, seeded_checkpoint


def test_the_kernel_branch_leaves_the_head():
    """Its weights are held once, and not rounded where that saves no time."""
    network = RawNetwork(seeded_checkpoint("nano").network(), SIZE_PX).convert(torch.bfloat16)
    assert not [name for name, _ in network.head.named_parameters() if "kernel" in name]
    assert {part.dtype for part in network.kernel_branch.parameters()} == {torch.float32}
    assert network.kernel_branch.reach == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda head: setattr(head.kernel_convs[1][0], "activate", nn.ReLU()),
        lambda head: setattr(head.kernel_convs[0][1], "conv", nn.Conv2d(64, 64, 5, padding=2).eval()),
        lambda head: setattr(head.kernel_convs[0][1], "conv", nn.Conv2d(64, 64, 3, padding=1, groups=64).eval()),
    ],
    ids=["ReLU", "5x5", "depthwise"],
)
def test_other_kernel_branches_are_refused(change):
    """The post-processing computes 3x3 convolutions with SiLU; anything else would come out wrong."""
    detector = seeded_checkpoint("nano").network()
    change(detector.bbox_head)
    with pytest.raises(CheckpointError, match="kernel branch"):
        RawNetwork(detector, SIZE_PX)


def test_other_heads_are_refused():
    """RawNetwork knows RTMDet-Ins heads only."""
    detector = seeded_checkpoint("nano").network()
    detector.bbox_head = torch.nn.Identity()
    with pytest.raises(CheckpointError, match="RTMDet-Ins head"):
        RawNetwork(detector, SIZE_PX)
