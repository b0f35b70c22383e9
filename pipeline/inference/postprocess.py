"""Post-processing: turns the network's raw outputs into instances, for a whole batch.

    RawOutputs ─▶ selection of each image's instances, on the host ─▶ mask parameters, masks ─▶ Instances

The steps are those of mmdet 3.3.0 (`base_dense_head.py`, `rtmdet_ins_head.py`) without its bugs: boxes are clipped to the image instead
of the padded square (after NMS, as in mmdet), boxes that lie entirely in the padding are dropped, and x is scaled by the factor of the
width. Every image has its own options. Its result does not depend on the batch, except sometimes for the last digit of a score.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compiled import compile_in_child
from pipeline.inference.instance_masks import mask_logits
from pipeline.inference.mask_head import CHANNELS, PARAMETER_COUNTS
from pipeline.inference.selection import Positions, Selected, select
from pipeline.model.head_outputs import RawOutputs
from pipeline.model.kernel_branch import KernelBranch, neighbours
from pipeline.types import DetectOptions, Instances, Letterbox


@functools.cache
def load_loops() -> None:
    """Load the compiled functions of this package from Numba's cache. If the cache lacks one, a child process compiles."""
    compile_in_child("pipeline.inference", "from pipeline.inference.postprocess import call_loops; call_loops()")
    call_loops()


def call_loops() -> None:
    """Call all compiled functions of this package once."""
    none, point = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)
    select(none[:, :1].copy(), none, np.ones(1, np.float32), Positions(point, np.zeros(1, np.int64)), 8, (8, 8), 1)
    parameters, features = np.zeros((1, sum(PARAMETER_COUNTS)), np.float32), np.zeros((CHANNELS, 1, 1), np.float32)
    mask_logits(features, (1, 1), parameters, point, np.ones(1, np.float32))


class PostProcessor:
    """Everything after the network.

    Args:
        input_hw: height and width of the network input, pixels.
        kernel_branch: predicts mask parameters; it also has the strides of the levels.
        device: device of the `RawOutputs`.
    """

    def __init__(self, input_hw: tuple[int, int], kernel_branch: KernelBranch, device: torch.device | str = "cpu") -> None:
        load_loops()
        self._kernel_branch = kernel_branch.to(device)
        points, strides, self._levels, self._around = position_tables(input_hw, kernel_branch, device)
        self._positions, self._strides = Positions(_on_host(points), self._levels.cpu().numpy()), _on_host(strides)

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
        outputs = RawOutputs(*(part[: len(letterboxes)] for part in outputs))
        logits, distances = _on_host(outputs.class_logits), _on_host(outputs.distances)
        thresholds = thresholds_of(options, logits.shape[-1])
        selected = [self._select(*own) for own in zip(logits, distances, thresholds, letterboxes, options, strict=True)]
        masks = self._masks(outputs, selected, letterboxes)
        return [_to_instances(*own) for own in zip(selected, masks, letterboxes, strict=True)]

    def _select(
        self,
        logits: NDArray[np.float32],
        distances: NDArray[np.float32],
        thresholds: NDArray[np.float32],
        letterbox: Letterbox,
        options: DetectOptions,
    ) -> Selected:
        height, width = letterbox.scaled_hw
        return select(logits, distances, thresholds, self._positions, letterbox.size, (width, height), options.max_detections)

    def _masks(
        self, outputs: RawOutputs, selected: Sequence[Selected], letterboxes: Sequence[Letterbox]
    ) -> Iterator[NDArray[np.float16]]:
        """For each image (count, h, w) mask logits on the part of the grid that covers it."""
        counts = [len(one.positions) for one in selected]
        parameters = _on_host(self._parameters(outputs.features, counts, np.concatenate([one.positions for one in selected])))
        first = 0
        for features, letterbox, one in zip(_on_host(outputs.mask_features), letterboxes, selected, strict=True):
            own = parameters[first : first + len(one.positions)]
            first += len(own)
            points, strides = self._positions.points[one.positions], self._strides[one.positions]
            yield mask_logits(features, letterbox.mask_grid_hw, own, points, strides)

    def _parameters(self, features: Tensor, counts: Sequence[int], positions: NDArray[np.int64]) -> Tensor:
        """(n, 169) mask parameters of the instances at these positions, `counts` of each image."""
        position = torch.from_numpy(positions).to(self._levels.device)
        image = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(self._levels.device)
        around = self._around[position]
        flat = image[:, None, None] * features.shape[1] + around.clamp(min=0)
        # a fifth of the time of features[image, around]
        patches = features.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, flat.shape)
        parameters: Tensor = self._kernel_branch(patches, around >= 0, self._levels[position])
        return parameters


def _on_host(values: Tensor) -> NDArray[np.float32]:
    """The values as a contiguous float32 array: Numba compiles a function for each layout."""
    return values.float().contiguous().cpu().numpy()


@contextmanager
def _one_thread_on_cpu(device: torch.device) -> Iterator[None]:
    """Keep torch from splitting many small operations over cores that are shared with other processes.

    Each split ends at a barrier, which waits for a core that another process uses. Measured on 2 cores, one image with 2 instances: 1.3 ms
    on one thread, 41 on two threads beside one busy process, 22 on an idle machine; with 100 instances 12, 19 and 8. Besides, a thread that
    torch starts for a caller is kept: with more threads than cores, OpenMP puts all of them to sleep between loops, and mmdet in the same
    process takes twice its time.
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
    """Look-up tables for all P positions of a network input, in the order of RawOutputs.

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


def boxes_around(points: Tensor, distances: Tensor, size: int) -> Tensor:
    """Boxes around points, clamped to the square of `size` pixels, as mmdet does before its NMS.

    Args:
        points: (..., 2) x y, network pixels.
        distances: (..., 4) to the left, top, right and bottom, network pixels.
        size: side of the network's square input, pixels.
    Returns:
        (..., 4) x1 y1 x2 y2, network pixels.
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1).clamp_(0, size)


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


def thresholds_of(options: Sequence[DetectOptions], classes: int) -> NDArray[np.float32]:
    """(B, C) float32; 1, which no score exceeds, for labels that are not wanted."""
    thresholds = np.ones((len(options), classes), np.float32)
    for row, one in zip(thresholds, options, strict=True):
        wanted = slice(None) if one.labels is None else [label for label in one.labels if 0 <= label < classes]
        row[wanted] = one.score_threshold
    return thresholds


def has_area(boxes: Tensor) -> Tensor:
    """(..., 4) boxes x1 y1 x2 y2 to (...) bool: width and height are above 0 (mmdet's `min_bbox_size` of 0)."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def _to_instances(selected: Selected, masks: NDArray[np.float16], letterbox: Letterbox) -> Instances:
    """Network pixels to original pixels, clipped once more against rounding."""
    factors, bounds = (np.array(pair * 2, np.float32) for pair in (letterbox.to_original_xy, letterbox.original_hw[::-1]))
    boxes = np.minimum(selected.boxes * factors, bounds)
    return Instances(boxes, selected.scores, selected.labels, masks, letterbox)
