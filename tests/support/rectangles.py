"""COCO annotations and predictions of rectangles, whose metrics are known."""

import numpy as np
from pycocotools import mask as rle_masks

SIZE = 100


def thing(x, y, width, height, image_id=1, category_id=1, **more):
    """A rectangle as an annotation or, with a score, as a prediction."""
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = rle_masks.encode(mask)
    segmentation = {"size": [SIZE, SIZE], "counts": rle["counts"].decode()}
    common = {"image_id": image_id, "category_id": category_id, "bbox": [x, y, width, height], "segmentation": segmentation}
    return common | {"area": width * height, "iscrowd": 0} | more


def document(*things, images=1, names=("cat",)):
    annotations = [entry | {"id": number} for number, entry in enumerate(things, start=1)]
    return {
        "images": [{"id": number, "width": SIZE, "height": SIZE, "file_name": "x"} for number in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
