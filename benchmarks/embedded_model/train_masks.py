"""jobs.finetune with what only the embedded model's runs 6 to 11 had: another mask loss, and an end by the clock.

    END=04:53 WARMUP=40 MAX_MASKS=100 python -m benchmarks.embedded_model.train_masks <options of jobs.finetune>

The mask loss is Dice plus a binary cross entropy that counts points near the outline up to four times. Both compare the logits,
enlarged to a stride of 4 pixels, with masks averaged over 4 x 4 pixels: mmdet takes every eighth pixel, which makes small masks too large.
"""

from __future__ import annotations

from jobs import finetune  # isort: skip  (before mmdet)

import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own short name)
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from torch import Tensor

from jobs.training import runner_config
from jobs.training.network import losses

MAX_MASKS = int(os.environ.get("MAX_MASKS", "160"))
"""Mask samples of a step; more are left out at random."""
TARGET_STRIDE_PX = 4
EDGE_WEIGHT = 3.0
DICE_WEIGHT = 2.0
MAX_ENTROPY = 5.0
"""Largest entropy of one sample, relative to the size of its mask."""
LAST_RATE = 0.02


def mask_loss(head: Any, features: Tensor, kernels: Tensor, assigned: list[Any], objects: list[Any]) -> Tensor:
    """Replaces `losses.mask_loss`: Dice and cross entropy on averaged masks."""
    logits, masks = mask_samples(head, features, kernels, assigned, objects)
    if not logits:
        return features.sum() * 0
    return dice_and_entropy(torch.cat(logits), torch.cat(masks), head.prior_generator.strides[0][0])


def mask_samples(
    head: Any, mask_feats: Tensor, kernels: Tensor, sampled: list[Any], objects: list[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits (n, h, w) at the head's stride and averaged masks (n, H, W) at TARGET_STRIDE_PX, for each image that has any."""
    share = min(1.0, MAX_MASKS / max(sum(len(sample.pos_inds) for sample in sampled), 1))
    logits, masks = [], []
    for features, kernel, sample, truth in zip(mask_feats, kernels, sampled, objects, strict=True):
        count = len(sample.pos_inds)
        if count == 0 or truth.masks.numel() == 0:
            continue
        kept = torch.randperm(count)[: max(1, round(count * share))] if share < 1 else torch.arange(count)
        used, where = sample.pos_assigned_gt_inds[kept].unique(return_inverse=True)
        logits.append(head._mask_predict_by_feat_single(features, kernel[sample.pos_inds[kept]], sample.pos_priors[kept]))
        masks.append(averaged(truth.masks[used])[where])
    return logits, masks


def averaged(masks: Tensor) -> Tensor:
    """(n, H, W) bool masks to (n, H / 4, W / 4) shares of 4 x 4 pixels, 0 to 1."""
    size = masks.shape[2] // TARGET_STRIDE_PX, masks.shape[1] // TARGET_STRIDE_PX
    shares = [cv2.resize(255 * mask, size, interpolation=cv2.INTER_AREA) for mask in masks.numpy().view(np.uint8)]
    return torch.from_numpy(np.stack(shares)).float() / 255


def dice_and_entropy(logits: Tensor, masks: Tensor, stride_px: int) -> Tensor:
    """The mean loss of (n, h, w) logits against (n, H, W) averaged masks."""
    logits = F.interpolate(logits[:, None], scale_factor=stride_px // TARGET_STRIDE_PX, mode="bilinear", align_corners=False)[
        :, 0
    ]
    inside = logits.sigmoid()
    dice = 1 - 2 * (inside * masks).sum((1, 2)) / (inside.square().sum((1, 2)) + masks.square().sum((1, 2)) + 1e-3)
    with torch.no_grad():
        around = F.avg_pool2d(masks[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
        weight = 1 + EDGE_WEIGHT * 4 * around * (1 - around)
        size = 2 * (masks > 0).sum((1, 2)).clamp(min=16)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * weight
    return DICE_WEIGHT * dice.mean() + (entropy.sum((1, 2)) / size).clamp(max=MAX_ENTROPY).mean()


@HOOKS.register_module()
class CosineByClock(Hook):
    """Decays the learning rates by the clock until END (UTC, HH:MM): on a shared machine the duration of a step is not known."""

    priority = "LOW"

    def before_train(self, runner: Any) -> None:
        """Note when the run begins and at which rates."""
        hour, minute = map(int, os.environ["END"].split(":"))
        self.began_s = time.time()
        self.end_s = datetime.now(UTC).replace(hour=hour, minute=minute, second=0).timestamp()
        self.warmup = int(os.environ.get("WARMUP", "100"))
        self.rates = [group["lr"] for group in runner.optim_wrapper.optimizer.param_groups]

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Set the rates of this moment; ask for the end when it has come."""
        part = min((time.time() - self.began_s) / (self.end_s - self.began_s), 1)
        factor = (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * part)) / 2) * min(1, (runner.iter + 1) / self.warmup)
        for group, rate in zip(runner.optim_wrapper.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        runner.train_loop.stop_training |= part >= 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; the options are those of jobs.finetune."""
    losses.mask_loss = mask_loss
    if os.environ.get("END"):
        hooks_of = runner_config._custom_hooks
        runner_config._custom_hooks = lambda *args: [*hooks_of(*args), {"type": "CosineByClock"}]
    return finetune.main(argv)


if __name__ == "__main__":
    sys.exit(main())
