"""A tiny annotated data set of generated pictures, and no photo."""

import json

import cv2
import numpy as np

SIZE_HW = (96, 128)


def picture(random):
    """Noise with one bright ellipse; returns pixels and the ellipse's outline, (K, 2) x y."""
    pixels = random.integers(0, 80, (*SIZE_HW, 3), dtype=np.uint8)
    centre, axes = random.integers(30, 66, 2), random.integers(14, 28, 2)
    outline = cv2.ellipse2Poly([int(v) for v in centre], [int(v) for v in axes], 0, 0, 360, 20)
    cv2.fillPoly(pixels, [outline], (60, 120, 240))
    return pixels, outline.astype(float)


def write_tiny_coco(folder):
    """`photos/`, `coco.json` and `azureml.jsonl`: six pictures, two labels, one picture without objects."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    images, annotations, rows = [], [], []
    for number in range(1, 7):
        pixels, outline = picture(random)
        name, label = f"{number}.png", ("ball", "egg")[number % 2]
        cv2.imwrite(str(folder / "photos" / name), pixels)
        images.append({"id": number, "file_name": name, "width": SIZE_HW[1], "height": SIZE_HW[0]})
        row = {"image_url": f"azureml://x/datastores/y/paths/{name}", "label": []}
        row["image_details"] = {"format": "png", "width": SIZE_HW[1], "height": SIZE_HW[0]}
        if number != 6:
            (x1, y1), (x2, y2) = outline.min(0), outline.max(0)
            box, area = [x1, y1, x2 - x1, y2 - y1], float(cv2.contourArea(outline.astype(np.float32)))
            common = {"image_id": number, "iscrowd": 0, "area": area, "bbox": box, "segmentation": [outline.ravel().tolist()]}
            annotations.append(common | {"id": number, "category_id": 1 + number % 2})
            flat = (outline / SIZE_HW[::-1]).ravel().tolist()
            row["label"].append({"label": label, "isCrowd": "false", "polygon": [flat]})
        rows.append(row)
    categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "egg"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "azureml.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
