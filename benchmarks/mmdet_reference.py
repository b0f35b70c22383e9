"""mmdet's own inference, untouched: the reference for tests and benchmarks. Never used by the service."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.model.checkpoints import Checkpoint
from pipeline.model.spec import mmdet_config


class Reference(NamedTuple):
    """mmdet's result for one image, highest score first.

    Attributes:
        boxes: (N, 4) float32 x1 y1 x2 y2, clamped to the padded square, not to the image.
        scores: (N,) float32.
        labels: (N,) int64.
        masks: (N, H, W) bool.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


class MmdetReference:
    """What `mmdet.apis.inference_detector` does: one image at a time, float32.

    Args:
        checkpoint: model and weights.
        score_threshold: mmdet's `score_thr`.
        max_detections: mmdet's `max_per_img`.
        device: where mmdet runs.
    """

    def __init__(
        self, checkpoint: Checkpoint, score_threshold: float = 0.05, max_detections: int = 100, device: str = "cpu"
    ) -> None:
        from mmcv.transforms import Compose

        config = mmdet_config(checkpoint.spec)
        self._detector = checkpoint.network().to(device)
        limits = {"score_thr": score_threshold, "max_per_img": max_detections}
        self._detector.bbox_head.test_cfg = config.model.test_cfg | limits
        self._pipeline = Compose([{"type": "mmdet.LoadImageFromNDArray"}, *config.test_pipeline[1:]])

    def predict(self, bgr: NDArray[np.uint8], rescale: bool = True) -> Reference:
        """Everything from the decoded image to masks.

        Args:
            bgr: (H, W, 3) uint8.
            rescale: True gives original pixels; False network pixels, masks of the whole padded square.
        """
        sample = self._pipeline({"img": bgr, "img_id": 0})
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            data = self._detector.data_preprocessor(batch, False)
            found = self._detector.predict(data["inputs"], data["data_samples"], rescale=rescale)[0].pred_instances
        return Reference(*(getattr(found, name).cpu().numpy() for name in ("bboxes", "scores", "labels", "masks")))
