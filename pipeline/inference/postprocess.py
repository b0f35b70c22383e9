"""Post-processing: turns the network's raw outputs into instances, for a whole batch, on the device of the outputs.

    RawOutputs ─▶ candidates ─▶ best 1000 per level ─▶ boxes ─▶ NMS ─▶ kernels, masks ─▶ to the host ─▶ Instances

The steps are those of mmdet 3.3.0 (`base_dense_head.py`, `rtmdet_ins_head.py`) without its bugs: boxes are clipped to the image instead
of the padded square (after NMS, as in mmdet), boxes that lie entirely in the padding are dropped, and x is scaled by the factor of the
width. Every image has its own options. Its result does not depend on the batch, except sometimes for the last digit of a score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.mask_head import mask_logits
from pipeline.inference.nms import greedy_nms
from pipeline.model.head_outputs import RawOutputs
from pipeline.model.kernel_branch import KernelBranch, neighbours
from pipeline.types import DetectOptions, Instances, Letterbox

CANDIDATES_PER_LEVEL = 1000
"""nms_pre of RTMDet's test config."""
NMS_IOU = 0.6
"""nms.iou_threshold of RTMDet's test config."""
LOGIT_SLACK = 1e-3
"""Margin of the first, cheap comparison of logits with the threshold; the exact comparison uses scores."""


class Candidates(NamedTuple):
    """Positions and classes above their image's threshold, (m,) each: image after image, highest score first."""

    image: Tensor
    position: Tensor
    label: Tensor
    score: Tensor


class PostProcessor:
    """Everything after the network.

    Args:
        input_hw: height and width of the network input, pixels.
        kernel_branch: predicts mask parameters; it also has the strides of the levels.
        device: device of the `RawOutputs`.
    """

    def __init__(self, input_hw: tuple[int, int], kernel_branch: KernelBranch, device: torch.device | str = "cpu") -> None:
        self._kernel_branch = kernel_branch.to(device)
        self._points, self._strides, self._levels, self._around = position_tables(input_hw, kernel_branch, device)

    @torch.inference_mode()
    def __call__(
        self, outputs: RawOutputs, letterboxes: Sequence[Letterbox], options: Sequence[DetectOptions]
    ) -> list[Instances]:
        """Find the instances of B images.

        Args:
            outputs: of the network for these images; rows beyond B are ignored.
            letterboxes: how each image lies in the network's input.
            options: what to keep of each image.
        """
        with _one_thread_on_cpu(outputs.class_logits.device):
            return self._find(outputs, letterboxes, options)

    def _find(self, outputs: RawOutputs, letterboxes: Sequence[Letterbox], options: Sequence[DetectOptions]) -> list[Instances]:
        batch = len(letterboxes)
        outputs = RawOutputs(*(part[:batch] for part in outputs))
        device = outputs.class_logits.device
        limits = torch.tensor([one.max_detections for one in options], device=device)
        found = _best_per_level(_candidates(outputs.class_logits, options), self._levels, len(self._kernel_branch.strides))
        boxes = self._boxes(outputs.distances, found, letterboxes[0].size)
        inside = _clip_to_images(boxes, found.image, letterboxes)
        kept = _suppress(boxes, has_area(inside), found, limits).nonzero().squeeze(1)
        found, inside = Candidates(*(part[kept] for part in found)), inside[kept]
        counts = (found.image == torch.arange(batch, device=device)[:, None]).sum(1).tolist()
        masks = self._masks(outputs, found, counts, letterboxes)
        return _to_instances(found, _to_original(inside, found.image, letterboxes), masks, counts, letterboxes)

    def _boxes(self, distances: Tensor, found: Candidates, size: int) -> Tensor:
        """(m, 4) network pixels."""
        reach = distances[found.image, found.position].float()
        return boxes_around(self._points[found.position], reach, size)

    def _masks(self, outputs: RawOutputs, found: Candidates, counts: list[int], letterboxes: Sequence[Letterbox]) -> list[Tensor]:
        """For each image (count, h, w) float16 on the part of the grid that covers it."""
        around = self._around[found.position]
        patches = outputs.features[found.image[:, None, None], around.clamp(min=0)]
        kernels = self._kernel_branch(patches, around >= 0, self._levels[found.position])
        points, strides = self._points[found.position], self._strides[found.position]
        grids = [letterbox.mask_grid_hw for letterbox in letterboxes]
        return mask_logits(outputs.mask_features, grids, counts, kernels, points, strides)


@contextmanager
def _one_thread_on_cpu(device: torch.device) -> Iterator[None]:
    """Keep torch from splitting many small operations over cores that are shared with other processes.

    Each split ends at a barrier, and a barrier waits for a core that a neighbour has. Measured on 2 cores, one image with 2
    instances: 1.3 ms on one thread, 41 on two beside one busy process, 22 on a quiet machine; with 100 instances 12, 19 and 8.
    And a second thread that torch starts for a caller stays: once there are more of them than cores, OpenMP puts all of them to sleep
    between loops, and mmdet in the same process takes twice its time.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PositionTables(NamedTuple):
    """Of all P positions of a network input, in the order of RawOutputs: what is looked up by a position's number.

    Attributes:
        points: (P, 2) float32 x y, network pixels.
        strides: (P,) float32, network pixels between positions of that level.
        levels: (P,) int64.
        around: (P, S, S) int64 as `kernel_branch.neighbours` says.
    """

    points: Tensor
    strides: Tensor
    levels: Tensor
    around: Tensor


def position_tables(input_hw: tuple[int, int], kernel_branch: KernelBranch, device: torch.device | str) -> PositionTables:
    """Make them for an input of this height and width, on the device."""
    levels_hw = [(-(-input_hw[0] // stride), -(-input_hw[1] // stride)) for stride in kernel_branch.strides]
    with _one_thread_on_cpu(torch.device(device)):
        tables = *_positions(levels_hw, kernel_branch.strides), neighbours(levels_hw, kernel_branch.reach)
        return PositionTables(*(table.to(device) for table in tables))


def boxes_around(points: Tensor, reach: Tensor, size: int) -> Tensor:
    """(..., 4) boxes of points (..., 2) and their distances left top right bottom (..., 4), clamped to the square of this size.

    mmdet clamps to the padded square before its NMS, too.
    """
    return torch.cat([points - reach[..., :2], points + reach[..., 2:]], dim=-1).clamp_(0, size)


def rows_to_instances(rows: NDArray[np.float32], masks: NDArray[np.float16], letterbox: Letterbox) -> Instances:
    """One image's instances from its rows (n, 6), which are copied: box in original pixels, score, label; masks (n, h, w) are not."""
    return Instances(rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5].astype(np.int64), masks, letterbox)


def _positions(levels_hw: Sequence[tuple[int, int]], strides: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Points (P, 2) x y, strides (P,) and level indices (P,) of all positions, in the order of RawOutputs.

    mmdet's MlvlPointGenerator with offset 0: the point is the top left corner of the position's cell.
    """
    points, steps, levels = [], [], []
    for level, (level_hw, stride) in enumerate(zip(levels_hw, strides, strict=True)):
        y, x = torch.meshgrid(*(torch.arange(side) * float(stride) for side in level_hw), indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], dim=1))
        steps.append(torch.full((x.numel(),), float(stride)))
        levels.append(torch.full((x.numel(),), level))
    return torch.cat(points), torch.cat(steps), torch.cat(levels)


def _candidates(logits: Tensor, options: Sequence[DetectOptions]) -> Candidates:
    """Scores above their image's threshold, of wanted labels; in order of image, position, label. NaN takes its position out."""
    thresholds = torch.from_numpy(thresholds_of(options, logits.shape[-1])).to(logits.device)
    cutoff = torch.logit(thresholds) - LOGIT_SLACK
    # few rows are left to look through
    image, position = (logits.amax(-1) > cutoff.amin(-1, keepdim=True)).nonzero(as_tuple=True)
    row, label = (logits[image, position] > cutoff[image]).nonzero(as_tuple=True)
    image, position = image[row], position[row]
    score = logits[image, position, label].float().sigmoid()
    exact = (score > thresholds[image, label]).nonzero().squeeze(1)
    return Candidates(image[exact], position[exact], label[exact], score[exact])


def thresholds_of(options: Sequence[DetectOptions], classes: int) -> NDArray[np.float32]:
    """(B, C) float32; 1, which no score exceeds, for labels that are not wanted."""
    thresholds = np.ones((len(options), classes), np.float32)
    for row, one in zip(thresholds, options, strict=True):
        wanted = slice(None) if one.labels is None else [label for label in one.labels if 0 <= label < classes]
        row[wanted] = one.score_threshold
    return thresholds


def _best_per_level(found: Candidates, levels: Tensor, level_count: int) -> Candidates:
    """Sort by image and score (ties: by level, position, label) and keep the best of each image's levels."""
    order = found.score.argsort(descending=True, stable=True)
    if len(order) > CANDIDATES_PER_LEVEL:
        group = (found.image * level_count + levels[found.position])[order]
        by_group = group.argsort(stable=True)
        kept = by_group[_ranks(group[by_group]) < CANDIDATES_PER_LEVEL].sort()[0]
        order = order[kept]
    order = order[found.image[order].argsort(stable=True)]
    return Candidates(*(part[order] for part in found))


def _ranks(groups: Tensor) -> Tensor:
    """Place of each element within its run of equal values, for sorted `groups` (m,)."""
    starts = torch.searchsorted(groups, groups)
    return torch.arange(len(groups), device=groups.device) - starts


def _suppress(boxes: Tensor, wanted: Tensor, found: Candidates, limits: Tensor) -> Tensor:
    """NMS of all images side by side; (m,) bool."""
    slot = _ranks(found.image)
    width = int(slot.max()) + 1 if len(slot) else 0

    def side_by_side(values: Tensor) -> Tensor:
        table = values.new_zeros(len(limits), width, *values.shape[1:])
        table[found.image, slot] = values
        return table

    tables = side_by_side(boxes), side_by_side(found.label), side_by_side(has_area(boxes)), side_by_side(wanted)
    return greedy_nms(*tables, NMS_IOU, limits)[found.image, slot]


def has_area(boxes: Tensor) -> Tensor:
    """(..., 4) to (...) bool: mmdet's min_bbox_size 0, width and height above 0."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def _clip_to_images(boxes: Tensor, image: Tensor, letterboxes: Sequence[Letterbox]) -> Tensor:
    scaled = torch.tensor([letterbox.scaled_hw[::-1] * 2 for letterbox in letterboxes], dtype=boxes.dtype)
    return torch.minimum(boxes, scaled.to(boxes.device)[image])


def _to_original(boxes: Tensor, image: Tensor, letterboxes: Sequence[Letterbox]) -> Tensor:
    """Network pixels to original pixels, clipped once more against rounding."""
    factors = torch.tensor([letterbox.to_original_xy * 2 for letterbox in letterboxes], dtype=boxes.dtype)
    bounds = torch.tensor([letterbox.original_hw[::-1] * 2 for letterbox in letterboxes], dtype=boxes.dtype)
    return torch.minimum(boxes * factors.to(boxes.device)[image], bounds.to(boxes.device)[image])


def _to_instances(
    found: Candidates, boxes: Tensor, masks: Sequence[Tensor], counts: list[int], letterboxes: Sequence[Letterbox]
) -> list[Instances]:
    """Copy to the host and split by image."""
    rows = torch.cat([boxes, found.score[:, None], found.label[:, None].to(boxes.dtype)], dim=1).cpu()
    return [
        rows_to_instances(own, own_masks.cpu().numpy(), letterbox)
        for own, own_masks, letterbox in zip((r.numpy() for r in rows.split(counts)), masks, letterboxes, strict=True)
    ]
