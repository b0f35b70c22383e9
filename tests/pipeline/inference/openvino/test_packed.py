"""Packing: the same numbers from fewer, fuller vectors, up to rounding in float32."""

from __future__ import annotations

import pytest
import torch

from pipeline.inference.openvino.packed import PackedConvModule, normalise_rows, pack_layers
from pipeline.model.rtmdet import RawNetwork
from tests.support.seeded import photo, seeded_checkpoint

INPUT_PX = 96


@pytest.mark.parametrize("pack", [2, 4])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1)], ids=["1x1", "3x3", "3x3 every other", "5x5"])
def test_a_packed_layer_computes_the_same(size, stride, pack):
    """Every tap and all four borders, on random weights."""
    from mmcv.cnn import ConvModule  # its import is quiet only after this project's

    torch.manual_seed(0)
    part = ConvModule(3, 5, size, stride, size // 2, act_cfg={"type": "SiLU"}).double().eval()
    features = torch.randn(2, 3, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(PackedConvModule(part, pack)(features), part(features))


@pytest.mark.parametrize(("model", "packed_layers"), [("nano", 2), ("tiny", 7), pytest.param("s", 0, marks=pytest.mark.slow)])
def test_a_packed_network_computes_the_same(model, packed_layers):
    """Whole networks, on a photo up to the input's border; layers whose channels fill their vectors stay as they are."""
    checkpoint = seeded_checkpoint(model)
    plain, packed = (RawNetwork(checkpoint.network(), INPUT_PX) for _ in range(2))
    normalise_rows(packed, whole_means=False)
    pack_layers(packed)
    pixels = torch.from_numpy(photo((INPUT_PX, INPUT_PX), 50))[None]
    assert sum(isinstance(part, PackedConvModule) for part in packed.modules()) == packed_layers
    with torch.inference_mode():
        for one, other in zip(plain(pixels), packed(pixels), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_whole_means_only_move_the_zeros_around_the_image():
    """The first layer's outputs are equal but along the border, where its padding stands for another grey; the input is exact in bf16."""
    checkpoint = seeded_checkpoint("tiny")
    plain, folded = (RawNetwork(checkpoint.network(), INPUT_PX) for _ in range(2))
    folded.fold_normalisation(whole_means=True)
    pixels = torch.from_numpy(photo((INPUT_PX, INPUT_PX), 50))[None]
    with torch.inference_mode():
        exact = folded.normalise(pixels)
        assert torch.equal(exact, exact.bfloat16().float())
        one, other = (network.backbone.stem[0](network.normalise(pixels)) for network in (plain, folded))
    torch.testing.assert_close(other[..., 1:, 1:], one[..., 1:, 1:], rtol=1e-4, atol=1e-4)
    assert (other - one).abs().max() > 1e-4
