"""RTMDet-Ins-nano: a smaller RTMDet-Ins than mmdet offers.

OpenMMLab publishes an RTMDet-nano *detector* (CSPNeXt 0.33/0.25, depthwise separable, head branches per level) but no
RTMDet-Ins of that size, and mmdet's `RTMDetInsSepBNHead` cannot hold the detector's weights: its class and box branches
are plain convolutions, and it uses the class branch as the box branch. The head below builds both branches as the detector has them, so
that all its weights can be loaded and only the mask parts must be trained from scratch.
"""

from __future__ import annotations

import copy
from typing import Any

from pipeline.model.compiled_ops import ensure_mmcv_ops

ensure_mmcv_ops()

import torch  # noqa: E402
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule  # noqa: E402  (after the stand-in)
from mmdet.models.dense_heads import RTMDetInsSepBNHead  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from torch import Tensor, nn  # noqa: E402

CHANNELS = 64
COORDINATE_REACH_STRIDES = 8  # relative coordinates are in units of 8 strides of the instance's level (mmdet)
NORM = {"type": "BN"}
ACTIVATION = {"type": "SiLU", "inplace": True}


@MODELS.register_module()
class RTMDetInsDepthwiseHead(RTMDetInsSepBNHead):
    """RTMDet-Ins head with depthwise separable class and box branches, one of each per level.

    Works around mmdet 3.3.0, whose `RTMDetInsSepBNHead._init_layers` appends `cls_convs` to `reg_convs`, so that both branches are the same
    (mmdet/models/dense_heads/rtmdet_ins_head.py).
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        levels = range(len(self.prior_generator.strides))
        self.cls_convs = nn.ModuleList(self._branch(DepthwiseSeparableConvModule) for _ in levels)
        self.reg_convs = nn.ModuleList(self._branch(DepthwiseSeparableConvModule) for _ in levels)
        self.kernel_convs = nn.ModuleList(self._branch(ConvModule) for _ in levels)

    def _mask_predict_by_feat_single(self, mask_feat: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
        """Mask logits of one image's instances: three matrix products instead of mmdet's grouped convolutions.

        The first layer is linear in the features and in the distance to the instance's point, so one product serves all instances,
        without a copy of the features for each. On a CPU a training step is several times faster.

        Args:
            mask_feat: (8, H, W) prototypes.
            kernels: (N, 169) dynamic parameters: weights of the three layers, then their biases.
            priors: (N, 4) x and y of the instance's point, and its level's stride twice, network pixels.
        Returns:
            (N, H, W) logits, inside is > 0.
        """
        height, width = mask_feat.shape[-2:]
        if len(priors) == 0:
            return mask_feat.new_empty((0, height, width))
        (w1, w2, w3), (b1, b2, b3) = self._dynamic_layers(kernels)
        grid = self.prior_generator.single_level_grid_priors((height, width), level_idx=0, device=mask_feat.device)
        reach = priors[:, 2].reshape(-1, 1, 1) * COORDINATE_REACH_STRIDES
        by_distance = w1[:, :, :2] / reach
        shift = (by_distance * priors[:, None, :2]).sum(dim=2) + b1
        weight = torch.cat([-by_distance, w1[:, :, 2:]], dim=2).flatten(0, 1)
        inputs = torch.cat([grid.T, mask_feat.reshape(len(mask_feat), -1)])
        x = torch.addmm(shift.reshape(-1, 1), weight, inputs).relu_().reshape(len(priors), -1, height * width)
        x = torch.baddbmm(b2[:, :, None], w2, x).relu_()
        return torch.baddbmm(b3[:, :, None], w3, x).reshape(len(priors), height, width)

    def _dynamic_layers(self, kernels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Cut (N, 169) parameters into three weights (N, out, in) and three biases (N, out)."""
        parts = kernels.split(self.weight_nums + self.bias_nums, dim=1)
        outs = [self.dyconv_channels] * (self.num_dyconvs - 1) + [1]
        weights = [part.reshape(len(kernels), out, -1) for part, out in zip(parts, outs, strict=False)]
        return weights, list(parts[self.num_dyconvs :])

    def _branch(self, block: type[nn.Module]) -> nn.ModuleList:
        style: dict[str, Any] = {"norm_cfg": self.norm_cfg, "act_cfg": self.act_cfg}
        widths = [self.in_channels] + [self.feat_channels] * (self.stacked_convs - 1)
        return nn.ModuleList(block(width, self.feat_channels, 3, padding=1, **style) for width in widths)


def nano_model_config(num_classes: int) -> dict[str, Any]:
    """The `model` section of mmdet's configuration for RTMDet-Ins-nano.

    Source: mmpose `projects/rtmpose/rtmdet/person/rtmdet_nano_320-8xb32_coco-person.py` for backbone, neck and branches,
    mmdet `rtmdet-ins_l_8xb32-300e_coco.py` for the mask parts, losses and test settings.
    """
    return {
        "type": "RTMDet",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [103.53, 116.28, 123.675],
            "std": [57.375, 57.12, 58.395],
            "bgr_to_rgb": False,
        },
        "backbone": copy.deepcopy(_BACKBONE),
        "neck": copy.deepcopy(_NECK),
        "bbox_head": copy.deepcopy(_HEAD) | {"num_classes": num_classes},
        "train_cfg": {
            "assigner": {"type": "DynamicSoftLabelAssigner", "topk": 13},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 100,
            "mask_thr_binary": 0.5,
        },
    }


_BACKBONE = {
    "type": "CSPNeXt",
    "arch": "P5",
    "expand_ratio": 0.5,
    "deepen_factor": 0.33,
    "widen_factor": 0.25,
    "use_depthwise": True,
    "channel_attention": True,
    "norm_cfg": NORM,
    "act_cfg": ACTIVATION,
}
_NECK = {
    "type": "CSPNeXtPAFPN",
    "in_channels": [64, 128, 256],
    "out_channels": CHANNELS,
    "num_csp_blocks": 1,
    "expand_ratio": 0.5,
    "use_depthwise": True,
    "norm_cfg": NORM,
    "act_cfg": ACTIVATION,
}
_HEAD = {
    "type": "RTMDetInsDepthwiseHead",
    "in_channels": CHANNELS,
    "stacked_convs": 2,
    "share_conv": False,
    "pred_kernel_size": 1,
    "feat_channels": CHANNELS,
    "norm_cfg": NORM,
    "act_cfg": ACTIVATION,
    "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16, 32]},
    "bbox_coder": {"type": "DistancePointBBoxCoder"},
    "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_mask": {"type": "DiceLoss", "loss_weight": 2.0, "eps": 5e-6, "reduction": "mean"},
}
