"""mmdet's RTMDet-Ins as one function from pixels to flat outputs, for all engines.

    uint8 (B, H, W, 3) ─▶ normalise ─▶ backbone, neck ─▶ head ─▶ RawOutputs ─▶ pipeline.inference.postprocess

No control flow depends on the data, so OpenVINO, CUDA graphs and `torch.export` can use it. Three things differ from mmdet's forward pass;
none of them changes a result:

- Batch norms are folded into convolutions, pools run in sequence (`pipeline.model.fusion`).
- In the official models the box branch *is* the class branch (mmdet appends the same layers twice): it runs once.
- The branch that predicts mask parameters runs after NMS, on the kept positions only (`pipeline.model.kernel_branch`), instead of on all
  8,400 positions of a 640 px image.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmdet.models.backbones.cspnext import CSPNeXt  # noqa: E402  (after the stand-in, as are all that need mmdet)
from mmdet.models.dense_heads.rtmdet_ins_head import RTMDetInsSepBNHead  # noqa: E402
from mmdet.models.necks.cspnext_pafpn import CSPNeXtPAFPN  # noqa: E402

from pipeline.errors import CheckpointError  # noqa: E402
from pipeline.model.fusion import simplify  # noqa: E402
from pipeline.model.head_outputs import RawOutputs  # noqa: E402
from pipeline.model.kernel_branch import WINDOW, KernelBranch  # noqa: E402


class Normalisation(nn.Module):
    """Normalises pixels: (x - mean) / std.

    Args:
        mean, std: (3, 1, 1), for each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


class RawNetwork(nn.Module):
    """Runs the network up to the post-processing. Modifies the detector in place.

    Args:
        detector: mmdet RTMDet with an `RTMDetInsSepBNHead`, in eval mode, with its weights.
        input_size: side S of the square input, pixels, a multiple of 32.
    Attributes:
        kernel_branch: predicts mask parameters; not part of `forward`.
    Raises:
        CheckpointError: another head, or its kernel branch is not made of 3x3 convolutions with SiLU and a 1x1 prediction.
    """

    normalise: nn.Module
    backbone: CSPNeXt
    neck: CSPNeXtPAFPN
    head: RTMDetInsSepBNHead

    def __init__(self, detector: nn.Module, input_size: int) -> None:
        super().__init__()
        head = cast(RTMDetInsSepBNHead, detector.bbox_head)
        if not isinstance(head, RTMDetInsSepBNHead) or head.with_objectness or head.pred_kernel_size != 1:
            raise CheckpointError(
                f"expected an RTMDet-Ins head with 1x1 predictions and no objectness, got {type(head).__name__}"
            )
        simplify(detector)
        self.input_size = input_size
        self.strides = tuple(int(stride) for stride, _ in head.prior_generator.strides)
        self.backbone, self.neck, self.head = cast(CSPNeXt, detector.backbone), cast(CSPNeXtPAFPN, detector.neck), head
        self.kernel_branch = _take_kernel_branch(head, self.strides)
        preprocessor: Any = detector.data_preprocessor
        self.normalise = Normalisation(preprocessor.mean, preprocessor.std)
        self.compute_dtype = torch.float32
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> RawOutputs:
        """Run the network on letterboxed pixels, (B, S, S, 3) uint8 BGR, or (B, H, W, 3) of a `letterbox.fitted_input`."""
        levels = self.neck(self.backbone(self.normalise(pixels).to(self.compute_dtype)))
        predictions = [self._predict_level(index, level) for index, level in enumerate(levels)]
        logits, distances, features = (
            torch.cat([_positions_first(part) for part in parts], 1) for parts in (*zip(*predictions, strict=True), levels)
        )
        return RawOutputs(logits, distances, features, self.head.mask_head(levels))

    def _predict_level(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        head = self.head
        class_features = _run(head.cls_convs[index], level).float()
        shared = head.reg_convs[index] is head.cls_convs[index]
        box_features = class_features if shared else _run(head.reg_convs[index], level).float()
        distances = functional.relu(head.rtm_reg[index](box_features)) * self.strides[index]
        return head.rtm_cls[index](class_features), distances

    def fold_normalisation(self, *, whole_means: bool) -> RawNetwork:
        """Fold the division by std into the first convolution's weights, in place; the normalisation's std becomes 1.

        Args:
            whole_means: subtract the mean rounded to whole numbers, and fold the rest into the first bias. Then bf16 represents the
                network's input exactly; otherwise it rounds it to 8 bits. The convolution's zero padding then differs from the mean by up
                to half a grey level.
        """
        first, before = self.backbone.stem[0].conv, cast(Normalisation, self.normalise)
        mean, std = before.mean, before.std
        first.weight /= std
        if whole_means:
            rest = mean.round() - mean
            first.bias += (first.weight.sum((2, 3)) * rest.flatten()).sum(1)
            mean = mean.round()
        self.normalise = Normalisation(mean, torch.ones_like(std))
        return self

    def convert(self, dtype: torch.dtype) -> RawNetwork:
        """Convert weights and computation to another precision; normalisation, scores and box distances stay float32.

        In bf16 a distance of 20 strides is off by up to 2 px, and the last 1x1 convolutions take little time.
        """
        if dtype == torch.bfloat16:  # float16 represents the input exactly anyway, but not the folded weights, which are small
            self.fold_normalisation(whole_means=True)
        for part in (self.backbone, self.neck, self.head):
            part.to(dtype)
        self.kernel_branch.convert(dtype)
        self.head.rtm_cls.float()
        self.head.rtm_reg.float()
        self.compute_dtype = dtype
        return self


def _take_kernel_branch(head: RTMDetInsSepBNHead, strides: tuple[int, ...]) -> KernelBranch:
    """Move the kernel branch out of the head; its batch norms must be folded."""
    for layer in itertools.chain(*head.kernel_convs):
        conv = layer.conv
        if conv.kernel_size != (WINDOW,) * 2 or conv.padding != (1, 1) or conv.groups != 1 or type(layer.activate) is not nn.SiLU:
            raise CheckpointError(f"expected 3x3 convolutions with SiLU in the head's kernel branch, got {layer}")
    by_level = [
        [*(layer.conv for layer in layers), last] for layers, last in zip(head.kernel_convs, head.rtm_kernel, strict=True)
    ]
    weights, biases = [], []
    for layers in zip(*by_level, strict=True):
        weights.append(torch.stack([conv.weight.permute(0, 2, 3, 1).flatten(1).float() for conv in layers]))
        biases.append(torch.stack([conv.bias.float() for conv in layers]))
    del head.kernel_convs, head.rtm_kernel
    return KernelBranch(weights, biases, strides)


def _run(layers: nn.ModuleList, features: Tensor) -> Tensor:
    for layer in layers:
        features = layer(features)
    return features


def _positions_first(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)
