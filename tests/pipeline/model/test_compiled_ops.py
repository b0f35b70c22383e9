"""mmcv's compiled operators, or the stand-in where there are none."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model import compiled_ops
from pipeline.model.compiled_ops import CompiledOpMissing, StandInOps, ensure_mmcv_ops, greedy_nms, keep_greedily


def slow_nms(boxes, scores, iou_threshold, offset):
    """The definition, box by box in plain Python."""
    kept = []
    for candidate in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(iou(boxes[candidate], boxes[better], offset) <= iou_threshold for better in kept):
            kept.append(candidate)
    return kept


def iou(one, other, offset):
    def area(box):
        return max(box[2] - box[0] + offset, 0) * max(box[3] - box[1] + offset, 0)

    shared = area([max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])])
    return shared / (area(one) + area(other) - shared)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_nms_is_its_definition(seed, iou_threshold, offset):
    """Random overlapping boxes: the same boxes are kept in the same order as by the definition."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 40, (40, 2))], axis=1)
    scores = random.permutation(40) / 40
    kept = greedy_nms(torch.tensor(boxes), torch.tensor(scores), iou_threshold, offset)
    assert kept.tolist() == slow_nms(boxes, scores, iou_threshold, offset)


def box_by_box(boxes, scores, iou_threshold, offset):
    """The same in torch, one kept box after the other: its rounding is that of `greedy_nms`, so ties fall alike."""
    order = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    kept = []
    while order.numel() > 0:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        top_left = torch.maximum(boxes[best, :2], boxes[rest, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (bottom_right - top_left + offset).clamp(min=0).prod(dim=1)
        order = rest[shared <= iou_threshold * (areas[best] + areas[rest] - shared)]
    return kept


COORDINATES = st.one_of(st.integers(0, 8).map(float), st.floats(0, 30, width=32), st.sampled_from([float("inf"), float("nan")]))


@settings(max_examples=300)
@given(
    boxes=st.lists(st.tuples(*[COORDINATES] * 4), max_size=30),
    scores=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=30, max_size=30),
    iou_threshold=st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]),
    offset=st.sampled_from([0, 1]),
    rows=st.sampled_from([1, 7, 256]),
)
def test_nms_keeps_what_the_loop_keeps(boxes, scores, iou_threshold, offset, rows):
    """Equal scores, an IoU of exactly the threshold, empty boxes, boxes inside out, no numbers: the same in the same order."""
    boxes, scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores[: len(boxes)])
    original, compiled_ops.ROWS = compiled_ops.ROWS, rows
    try:
        kept = greedy_nms(boxes, scores, iou_threshold, offset)
    finally:
        compiled_ops.ROWS = original
    assert kept.tolist() == box_by_box(boxes, scores, iou_threshold, offset)


@pytest.mark.cuda
def test_nms_on_a_gpu_keeps_what_the_cpu_keeps():
    """The same indices, and they come back on the GPU."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(1000, 2, generator=random) * 300
    boxes = torch.cat([corners, corners + 20 + torch.rand(1000, 2, generator=random) * 100], 1)
    scores = torch.rand(1000, generator=random)
    kept = greedy_nms(boxes.cuda(), scores.cuda(), 0.6)
    assert kept.is_cuda
    assert kept.tolist() == greedy_nms(boxes, scores, 0.6).tolist()


def test_a_dropped_box_drops_nothing():
    """The first drops the second; the third, which only the second overlaps, stays."""
    overlaps = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
    assert keep_greedily(overlaps).tolist() == [0, 2]


def test_nms_of_nothing_is_nothing():
    """No boxes in, no indices out, and they are still indices."""
    kept = greedy_nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def test_other_ops_refuse_by_name():
    """An operator that RTMDet-Ins does not need exists, and says what to install when it is called."""
    ops = StandInOps()
    assert hasattr(ops, "roi_align_forward")
    with pytest.raises(CompiledOpMissing, match=r"roi_align_forward.*pip install mmcv"):
        ops.roi_align_forward()


def test_stand_in_has_no_invented_dunders():
    """Python's own machinery asks modules for names such as __path__; those must not become operators."""
    assert not hasattr(StandInOps(), "__path__")


def test_second_call_changes_nothing():
    """Whatever answers `mmcv._ext` keeps answering."""
    first = ensure_mmcv_ops()
    module = sys.modules["mmcv._ext"]
    assert ensure_mmcv_ops() == first
    assert sys.modules["mmcv._ext"] is module


def test_real_extension_is_used_when_it_is_there():
    """A compiled `mmcv._ext` on the path wins, and stays untouched."""
    program = (
        "import sys, types\n"
        "class Compiled(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        if name.startswith('__'): raise AttributeError(name)\n"
        "        return print\n"
        "real = Compiled('mmcv._ext')\n"
        "sys.modules['mmcv._ext'] = real\n"
        "from pipeline.model.compiled_ops import ensure_mmcv_ops\n"
        "assert ensure_mmcv_ops() is True\n"
        "assert sys.modules['mmcv._ext'] is real\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_import_is_silent():
    """Building the model zoo in a fresh interpreter prints no warning."""
    program = "from pipeline.model.spec import nano_spec, build_network; build_network(nano_spec())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
