"""Layers of a network that compute in float32."""

import torch

from pipeline.inference.torch_engine import Float32Layers


def test_layers_in_float32_between_others_in_bf16():
    """Only what comes and goes is rounded, and the weights that were rounded already."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 8, 3)).bfloat16()
    features = torch.randn(1, 3, 16, 16).bfloat16()
    with torch.inference_mode():
        rounded = layers(features).float()
        found = Float32Layers(layers)(features)
        exact = layers.double()(features.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=1e-3)
    assert (found - exact).abs().mean() < (rounded - exact).abs().mean()
