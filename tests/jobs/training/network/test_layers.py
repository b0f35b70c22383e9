"""Activations are computed again, with the same gradients."""

import copy

import pytest
import torch

from jobs.training.network.layers import recompute_backbone
from pipeline.model.spec import build_network, nano_spec

pytestmark = pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast")


def gradients(network, image):
    sum(level.square().sum() for level in network.extract_feat(image)).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_the_gradients_are_the_same():
    """Also behind a frozen stem, whose output needs no gradient."""
    torch.manual_seed(0)
    plain, image = build_network(nano_spec()).train(), torch.rand(2, 3, 64, 64)
    plain.backbone.stem.requires_grad_(False)
    other = copy.deepcopy(plain)
    assert recompute_backbone(other) == 4
    assert other.state_dict().keys() == plain.state_dict().keys()
    expected, found = gradients(plain, image), gradients(other, image)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_fewer_activations_are_kept():
    """Bytes that the backward pass will need."""

    def kept(network):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network.backbone(torch.rand(1, 3, 64, 64))
        return total

    network = build_network(nano_spec()).train()
    before = kept(network)
    recompute_backbone(network)
    assert kept(network) < before / 2
