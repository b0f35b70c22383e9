"""How many operations the network takes, 2 for a multiply-add.

Counted on the network as it runs here (batch norms folded, the shared branch once, the kernel branch left to the post-processing), not on
mmdet's: counting work that was saved would flatter the share of the peak. mmdet's own count stands beside it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.rtmdet import RawNetwork
from pipeline.model.spec import ModelSpec, build_network


def count_flops(spec: ModelSpec) -> tuple[float, float]:
    """Operations of one image: (of the network here, of mmdet's own), by PyTorch's counter, without computing anything."""
    size = spec.input_size
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        theirs: Any = build_network(spec).to("meta")
        with FlopCounterMode(display=False) as mmdet:
            theirs.bbox_head(theirs.extract_feat(torch.zeros(1, 3, size, size, device="meta")))
        ours = RawNetwork(build_network(spec), size).to("meta")
        with FlopCounterMode(display=False) as here:
            ours(torch.zeros(1, size, size, 3, dtype=torch.uint8, device="meta"))
    return float(here.get_total_flops()), float(mmdet.get_total_flops())
