"""Outlines of every kind, drawn into photos and annotated, so that masks can be compared with the photos."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

PHOTO_HW = (150, 200)


def blob(centre, radius, points=12):
    """(K, 2) x y of a ragged outline."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius * (1 + 0.25 * np.cos(3 * angles))
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


OUTLINES = {
    "one ring": [blob((100, 75), 50)],
    "two parts": [blob((50, 75), 30), blob((145, 75), 35)],
    "a hole": [blob((100, 75), 55), blob((100, 75), 25)],
    "beyond the border": [blob((20, 75), 55)],
    "an island in a hole": [blob((100, 75), 58, 24), blob((100, 75), 38, 24), blob((100, 75), 18, 24)],
}


def drawn(rings):
    """Pixels within an odd number of rings, as pycocotools draws them."""
    rles = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *PHOTO_HW)
    return np.bitwise_xor.reduce([coco_mask.decode(rle) for rle in rles])


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
