"""Masks that training sees lie on what is drawn into the photos, whatever the annotations look like."""

from __future__ import annotations

import jobs.training.runner_config  # isort: skip  # noqa: F401  (before mmengine)

import json

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools import mask as coco_mask

from jobs.annotations.datasets import read_annotations
from jobs.training.runner_config import train_loader
from jobs.training.settings import FinetuneSettings
from pipeline.model.spec import nano_spec

SIDE = 192
PHOTO_HW = (150, 200)
BRIGHT = 170
"""Between what is drawn (230 to 255 after colour jitter) and the padding (at most 150)."""


def blob(centre, radius, points=12):
    """(K, 2) x y of a ragged outline."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius * (1 + 0.25 * np.cos(3 * angles))
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def drawn(rings):
    """Pixels within an odd number of rings, as pycocotools draws them."""
    rles = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *PHOTO_HW)
    return np.bitwise_xor.reduce([coco_mask.decode(rle) for rle in rles])


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.meshgrid")


OUTLINES = {
    "one ring": [blob((100, 75), 50)],
    "two parts": [blob((50, 75), 30), blob((145, 75), 35)],
    "a hole": [blob((100, 75), 55), blob((100, 75), 25)],
    "beyond the border": [blob((20, 75), 55)],
    "an island in a hole": [blob((100, 75), 58, 24), blob((100, 75), 38, 24), blob((100, 75), 18, 24)],
}


def to_rle(mask, *, compressed):
    rle = coco_mask.encode(np.asfortranarray(mask))
    if compressed:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return {"size": rle["size"], "counts": [0, *runs] if flat[0] else runs}


def coco_file(folder, outlines):
    """A photo with what each outline draws, and a plain annotation of it: RLE where there are holes."""
    (folder / "photos").mkdir(exist_ok=True)
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "blob"}]}
    for number, rings in enumerate(outlines, start=1):
        mask = drawn(rings)
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), np.repeat(255 * mask[..., None], 3, axis=2))
        plain = all(ring.min() >= 0 for ring in rings) and mask.sum() == sum(drawn([ring]).sum() for ring in rings)
        outline = [ring.ravel().tolist() for ring in rings] if plain else to_rle(mask, compressed=True)
        x, y, width, height = (float(value) for value in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))))
        document["images"].append({"id": number, "file_name": f"{number}.png", "width": PHOTO_HW[1], "height": PHOTO_HW[0]})
        document["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": outline, "iscrowd": 0, "area": float(mask.sum())}
            | {"bbox": [x, y, width, height]}
        )
    return document


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
