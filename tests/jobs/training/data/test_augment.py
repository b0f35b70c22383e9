"""Masks that training sees lie on what is drawn into the photos, whatever the annotations look like."""

from __future__ import annotations

import jobs.training.runner_config  # isort: skip  # noqa: F401  (before mmengine)

import json

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from jobs.annotations.datasets import read_annotations
from jobs.training.runner_config import train_loader
from jobs.training.settings import FinetuneSettings
from pipeline.model.spec import nano_spec
from tests.support.drawn_outlines import OUTLINES, coco_file

SIDE = 192
BRIGHT = 170
"""Between what is drawn (230 to 255 after colour jitter) and the padding (at most 150)."""


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid")


def read(folder, document):
    (folder / "coco.json").write_text(json.dumps(document))
    return read_annotations(folder / "coco.json", folder / "photos", folder / "scratch", training=True)


def samples(folder, annotations, count, mosaic):
    """Pictures (H, W, 3) and masks (N, H, W) as a training step gets them."""
    options = FinetuneSettings(
        train=folder,
        train_images=folder,
        work_dir=folder,
        steps=1000,
        batch_size=1,
        image_size=SIDE,
        mosaic=mosaic,
        workers=0,
        scale_jitter=(0.8, 1.6),
    )
    init_default_scope("mmdet")
    loader = Runner.build_dataloader(train_loader(options, nano_spec(annotations.classes, SIDE), annotations), seed=0)
    batches = iter(loader)
    for _ in range(count):
        batch = next(batches)
        picture, (sample,) = batch["inputs"][0].numpy().transpose(1, 2, 0), batch["data_samples"]
        yield picture, sample.gt_instances.masks.pad((SIDE, SIDE)).to_ndarray()


def agreement(pairs):
    """IoU of all masks with all that is drawn, over several samples."""
    shared = whole = 0
    for picture, masks in pairs:
        seen, bright = masks.any(axis=0), picture.max(axis=2) > BRIGHT
        shared, whole = shared + np.count_nonzero(seen & bright), whole + np.count_nonzero(seen | bright)
    return shared / whole if whole else 0.0


@pytest.mark.parametrize("mosaic", [0.0, 1.0], ids=["single", "mosaics"])
@pytest.mark.parametrize("name", OUTLINES)
def test_masks_lie_on_the_objects(tmp_path, name, mosaic):
    """Holes, parts and what reaches beyond the photo, through every transform of training."""
    annotations = read(tmp_path, coco_file(tmp_path, [OUTLINES[name]] * 5))
    assert annotations.report.objects == 5
    assert agreement(samples(tmp_path, annotations, 6, mosaic)) > 0.93
