"""Checkpoints with random weights that behave like trained ones: some 100 instances, boxes and masks of all shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.images.letterbox import scale_to_fit
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.spec import OFFICIAL_NAMES, ModelSpec, build_network, nano_spec, official_spec
from pipeline.types import LoadedImage

SIZE_PX = 256


@cache
def seeded_checkpoint(size: str, input_size: int = SIZE_PX, seed: int = 0, instances: int = 100) -> Checkpoint:
    """RTMDet-Ins of one size (`nano`, `tiny` ... `x`) whose outputs are spread as if it had learned something."""
    spec = _spec(size, input_size)
    with _threads(2):
        return Checkpoint(spec, _weights(spec, seed, instances))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums over another number of threads round differently and lead to other weights: the first caller's thread count would decide."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weights(spec: ModelSpec, seed: int, instances: int) -> dict[str, torch.Tensor]:
    input_size = spec.input_size
    torch.manual_seed(seed)
    detector = build_network(spec)
    pixels = np.stack([photo((input_size, input_size), seed + n) for n in range(4)])
    pixels[1, input_size * 2 // 3 :] = pixels[2, :, input_size // 2 :] = 114
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmdet's autocast guards
        images = detector.data_preprocessor({"inputs": list(torch.from_numpy(pixels).permute(0, 3, 1, 2))})["inputs"]
        _settle_batch_norms(detector, images)
        _spread_head(detector, images, instances)
    return detector.state_dict()


def photo(hw: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of soft random blobs, the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 12)))
    fine = torch.from_numpy(rng.uniform(-60, 60, (1, 3, 60, 60)))
    blobs = sum(nn.functional.interpolate(part, hw, mode="bicubic") for part in (coarse, fine))
    return np.ascontiguousarray(blobs[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())


def loaded_photo(hw: tuple[int, int], seed: int = 0, size: int = SIZE_PX) -> LoadedImage:
    """`photo`, scaled into the network's square of `size` pixels."""
    return scale_to_fit(photo(hw, seed), hw, size)


def _spec(size: str, input_size: int) -> ModelSpec:
    if size == "nano":
        return nano_spec(input_size=input_size)
    spec = official_spec(next(name for name in OFFICIAL_NAMES if f"_{size}_" in name))
    return ModelSpec(spec.name, spec.classes, input_size, spec.config)


def _settle_batch_norms(detector: nn.Module, images: torch.Tensor) -> None:
    """Random layers shrink their inputs; statistics of real inputs bring every layer's output to unit variance."""
    norms = [part for part in detector.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
    detector.train()
    detector(images)
    detector.eval()
    for norm in norms:
        norm.running_var.clamp_(min=float(norm.running_var.median()))  # no channel may amplify what it never saw


def _spread_head(detector: nn.Module, images: torch.Tensor, instances: int) -> None:
    head = detector.bbox_head
    logits, distances, kernels, features = head(detector.extract_feat(images))
    _scale(head.mask_head.projection, features, 1.0)
    for level, layer in enumerate(head.rtm_kernel):
        _scale(layer, kernels[level], 0.7)
        layer.bias.normal_(0, 0.3)
    for level, layer in enumerate(head.rtm_reg):
        raw = distances[level] / head.prior_generator.strides[level][0] - 1
        _scale(layer, raw, 1.5)
        layer.bias.fill_(3.0)
    for level, layer in enumerate(head.rtm_cls):
        layer.bias.zero_()
        _scale(layer, logits[level] + 4.6, 1.0)
    spread = torch.cat([one.flatten(1) for one in head(detector.extract_feat(images))[0]], 1)
    rank = min(3 * instances, spread.shape[1] // 4)
    offset = float(torch.logit(torch.tensor(0.05))) - float(spread.topk(rank, 1)[0][:, -1].mean())
    for layer in head.rtm_cls:
        layer.bias.fill_(offset)


def _scale(layer: nn.Conv2d, output: torch.Tensor, deviation: float) -> None:
    layer.weight.mul_(deviation / output.std().clamp(min=1e-6))
